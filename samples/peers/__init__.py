"""Our language model against other runtimes on the same weights; see `__main__.py`."""
