"""The DejaVu fonts that matplotlib bundles."""

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from laco_runtimes.errors import MissingPackageError

FONTS: tuple[str, ...] = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
)
SOURCE = (
    "DejaVu fonts as bundled with matplotlib; Bitstream Vera licence, changes in the public domain"
)


@lru_cache(maxsize=1)
def _folder() -> Path:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackageError("matplotlib", "train") from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=2048)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of `FONTS` at `size` pixels.

    The basic layout engine is asked for because the other one (Raqm) is not in every Pillow build,
    and pictures must not depend on that.
    """
    return ImageFont.truetype(
        str(_folder() / f"{name}.ttf"), size, layout_engine=ImageFont.Layout.BASIC
    )


def text_size(name: str, size: int, text: str) -> tuple[float, float]:
    """Width and height in pixels of the ink of a line of text."""
    left, top, right, bottom = load_font(name, size).getbbox(text)
    return right - left, bottom - top
