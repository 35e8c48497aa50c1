"""The efficiency columns of the paper's Tables 1, 4 and 8, measured here; see `__main__.py`."""
