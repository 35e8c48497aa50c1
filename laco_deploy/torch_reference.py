"""The PyTorch model as the one that exports are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from laco_deploy.model.checkpoint import unwarned
from laco_deploy.model.image_processing import LacoImageProcessor
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_export.protocols import Floats, GreedyAnswer, Size


class TorchReference:
    """The model itself, asked through its own public methods.

    Args:
        model: in evaluation mode.
        images: the checkpoint's own processor of images.
    """

    def __init__(self, model: LacoForConditionalGeneration, images: LacoImageProcessor) -> None:
        self._model = model
        self.images = images

    def preprocess(self, image: NDArray[np.uint8]) -> Floats:
        """[H, W, 3] -> [tiles, 3, S, S]."""
        return np.asarray(self.images(image, return_tensors="np")["pixel_values"], np.float32)

    def logits_at(
        self,
        pixel_values: Floats,
        ids: Sequence[int],
        positions: Sequence[int],
        size: Size | None = None,
    ) -> Floats:
        """Logits at some positions of one pass over all of `ids`, [positions, V]."""
        with torch.no_grad():
            output = self._model(
                input_ids=torch.tensor([list(ids)]),
                **_image(pixel_values, size),
            )
        return output.logits[0, list(positions)].numpy()  # type: ignore[no-any-return]

    def greedy(
        self,
        pixel_values: Floats,
        ids: Sequence[int],
        max_new_tokens: int,
        size: Size | None = None,
    ) -> GreedyAnswer:
        """transformers' own `generate`, past stop tokens."""
        prompt = torch.tensor([list(ids)])
        model: Any = self._model  # `generate` is typed for other classes
        features: list[torch.Tensor] = []
        # The visual tokens on their way: to encode the image once more takes seconds at full size.
        # `generate` also warns, for every image, that nothing will stop it.
        with _results(model.model.projector, features), unwarned():
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                **_image(pixel_values, size),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=-1,  # no token has it, so nothing ends the answer early
                pad_token_id=0,  # never used
                output_logits=True,
                return_dict_in_generate=True,
            )
        [seen] = features
        return GreedyAnswer(
            features=seen.numpy(),
            tokens=tuple(output.sequences[0, len(ids) :].tolist()),
            logits=torch.cat(output.logits).numpy(),  # [new tokens, V]
        )


@contextmanager
def _results(module: nn.Module, found: list[torch.Tensor]) -> Iterator[None]:
    """Note what a module returns."""
    hook = module.register_forward_hook(lambda _, __, result: found.append(result))
    try:
        yield
    finally:
        hook.remove()


def _image(pixel_values: Floats, size: Size | None) -> dict[str, torch.Tensor]:
    """One image as the model takes it, [tiles, 3, S, S]."""
    values = {
        "pixel_values": torch.from_numpy(pixel_values),
        "num_tiles": torch.tensor([len(pixel_values)]),
    }
    return values if size is None else {**values, "image_sizes": torch.tensor([size])}


__all__ = ["TorchReference"]
