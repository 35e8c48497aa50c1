"""`LacoImageProcessor`: images to tiles of normalised pixels.

Pixels come from `laco_runtimes.images`, so PyTorch and a runtime see the same ones bit for bit.
Needs Pillow and numpy; torchvision is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from laco_deploy.model.towers.aimv2 import AIMV2
from laco_deploy.model.visual_inputs import VisualInput, deal_without_text, read_image
from laco_runtimes.errors import ArgumentError
from laco_runtimes.images import Preprocessing, normalise, resize_square
from laco_runtimes.tiling import IMAGE_MODES, Size, cut_tiles

FIXED_STEPS: Mapping[str, Any] = {
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 3,  # Pillow's number for bicubic
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
"""Written into `preprocessor_config.json` for whoever reads it. No encoder of the family crops:
a crop would lose what stands at the border."""


class LacoImagesKwargs(ImagesKwargs, total=False):
    """Options of `LacoImageProcessor`."""

    image_mode: str | None


class LacoImageProcessor(BaseImageProcessor):
    """Squash images to the encoder's square, or cut them into tiles, and normalise.

    Args:
        size: side of a tile in pixels, or {"height": S, "width": S}.
        image_mode: "square" or "anyres", see `LacoConfig`.
        image_mean: channel means on the 0..1 scale; those of AIMv2 by default.
        image_std: channel standard deviations.
        **kwargs: `FIXED_STEPS` as a file repeats them.

    Raises:
        ArgumentError: a size that is not square, an unknown mode, or other steps.
    """

    valid_kwargs = LacoImagesKwargs
    model_input_names = ["pixel_values", "image_sizes", "num_tiles"]

    def __init__(
        self,
        size: int | Mapping[str, int] = 448,
        image_mode: str = "square",
        image_mean: Sequence[float] = AIMV2.mean,
        image_std: Sequence[float] = AIMV2.std,
        **kwargs: Any,
    ) -> None:
        _check_steps({name: kwargs.pop(name) for name in FIXED_STEPS if name in kwargs})
        super().__init__(**kwargs)
        for name, value in FIXED_STEPS.items():
            setattr(self, name, value)
        side = _square(size)
        self.size = {"height": side, "width": side}
        self.image_mode = _check_mode(image_mode)
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    @property
    def preprocessing(self) -> Preprocessing:
        """The same settings, as a runtime knows them."""
        red, green, blue = self.image_mean
        std_red, std_green, std_blue = self.image_std
        return Preprocessing(
            image_size=self.size["height"],
            mean=(red, green, blue),
            std=(std_red, std_green, std_blue),
        )

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Leave images as they are; `tiles` reads them."""
        return image_url_or_urls

    def tiles(self, source: Any, image_mode: str | None = None) -> tuple[NDArray[np.float32], Size]:
        """One image as normalised tiles, [tiles, 3, S, S], and its height and width in pixels.

        Raises:
            ImageError: an image that cannot be read.
        """
        image, spec = read_image(source), self.preprocessing
        if _check_mode(image_mode or self.image_mode) == "anyres":
            tiles = cut_tiles(image, spec.image_size)
        else:
            tiles = resize_square(image, spec.image_size)[None]
        return np.stack([normalise(tile, spec) for tile in tiles]), (image.height, image.width)

    def preprocess(
        self,
        images: Any,
        *args: Any,
        image_mode: str | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tiles of images, one after the other.

        Args:
            images: one, a list, or a list of lists: one list per prompt. In "anyres" only an image
                alone in its prompt is cut; a flat list is of images of different prompts.
            *args: none.
            image_mode: in place of the processor's own.
            return_tensors: "pt" or "np".
            **kwargs: `FIXED_STEPS` may be repeated, nothing may be changed.

        Returns:
            pixel_values [tiles, 3, S, S], image_sizes [images, 2] (height, width), num_tiles
            [images].

        Raises:
            ArgumentError: no image, or an option that this processor has not.
            ImageError: an image that cannot be read.
        """
        visuals = deal_without_text(images)
        values = self.pack(visuals, image_mode=image_mode, **kwargs)
        return BatchFeature(values, tensor_type=return_tensors)

    def pack(
        self,
        visuals: Sequence[VisualInput],
        image_mode: str | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arrays of images and videos, one after the other; each frame is a tile.

        Args:
            visuals: at least one.
            image_mode: in place of the processor's own.
            return_tensors: not used; the caller makes the tensors.
            **kwargs: `FIXED_STEPS` may be repeated, nothing may be changed.

        Returns:
            pixel_values, image_sizes, num_tiles, and is_video [images and videos] if one is.

        Raises:
            ArgumentError: an option that this processor has not, or a video without frames.
            ImageError: an image that cannot be read.
        """
        _check_steps(kwargs)
        parts, sizes = [], []
        for visual in visuals:
            if visual.is_video:
                frames = [self.tiles(frame, "square") for frame in visual.source]
                if not frames:
                    raise ArgumentError("a video has no frames. Give at least one.")
                part, size = np.concatenate([frame for frame, _ in frames]), frames[0][1]
            else:
                part, size = self.tiles(visual.source, image_mode if visual.is_alone else "square")
            parts.append(part)
            sizes.append(size)
        values: dict[str, Any] = {
            "pixel_values": np.concatenate(parts),
            "image_sizes": np.array(sizes),
            "num_tiles": np.array([len(part) for part in parts]),
        }
        if any(visual.is_video for visual in visuals):
            values["is_video"] = np.array([visual.is_video for visual in visuals])
        return values


def own_image_processor(processor: Any) -> LacoImageProcessor:
    """Our processor with the figures of another, whose resizing and cropping are not taken over.

    Raises:
        ArgumentError: no figures in it.
    """
    if isinstance(processor, LacoImageProcessor):
        return processor
    try:
        size = dict(processor.size)
        side = size.get("height") or size["shortest_edge"]
        return LacoImageProcessor(side, "square", processor.image_mean, processor.image_std)
    except (AttributeError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{type(processor).__name__} states no size, image_mean and image_std. "
            "Give a LacoImageProcessor."
        ) from error


def _square(size: Any) -> int:
    sides = list(size.values()) if isinstance(size, Mapping) else [size]
    side = sides[0] if sides and all(one == sides[0] for one in sides) else None
    if not isinstance(side, int) or side < 1:
        raise ArgumentError(f"the size of a tile is {size}. Give the side of a square in pixels.")
    return side


def _check_mode(mode: str) -> str:
    if mode not in IMAGE_MODES:
        raise ArgumentError(f"unknown image_mode {mode!r}. Known: {', '.join(IMAGE_MODES)}.")
    return mode


def _check_steps(steps: Mapping[str, Any]) -> None:
    """Refuse what would not be done; None and what is done anyway may stand there."""
    for name, value in steps.items():
        if value is not None and FIXED_STEPS.get(name, None) != value:
            raise ArgumentError(
                f"image option {name} = {value!r} is not supported: every image is squashed or cut "
                "into tiles, and normalised, as the encoder needs it. Leave it out."
            )


__all__ = ["FIXED_STEPS", "LacoImageProcessor", "LacoImagesKwargs", "own_image_processor"]
