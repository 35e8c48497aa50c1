"""Train, export, run and measure vision-language models that merge visual tokens in the encoder.

    >>> from laco_deploy import Pipeline
    >>> print(Pipeline("engine/").chat("photo.jpg", "What is on the table?"))

Importing this package costs nothing: each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laco_runtimes.errors import LacoError
    from laco_runtimes.pipeline import Pipeline
    from laco_runtimes.reply import Reply
    from laco_runtimes.video import Video

    __version__: str

_HOMES = {
    "LacoError": "laco_runtimes.errors",
    "Pipeline": "laco_runtimes.pipeline",
    "Reply": "laco_runtimes.reply",
    "Video": "laco_runtimes.video",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            value: Any = metadata.version("laco-deploy")
        except metadata.PackageNotFoundError:  # run from a source tree that is not installed
            value = "0+source"
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = ["LacoError", "Pipeline", "Reply", "Video", "__version__"]
