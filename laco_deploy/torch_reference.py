"""The PyTorch model as the one that exports are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.modeling_outputs import BaseModelOutputWithPooling

from laco_deploy.model.checkpoint import unwarned
from laco_deploy.model.image_processing import LacoImageProcessor
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_export.protocols import Floats, GreedyAnswer, Size


class TorchReference:
    """The model itself, asked through its own public methods.

    An image is encoded once, also where it is asked about twice in a row: at full size that takes
    seconds.

    Args:
        model: in evaluation mode.
        images: the checkpoint's own processor of images.
    """

    def __init__(self, model: LacoForConditionalGeneration, images: LacoImageProcessor) -> None:
        self._model = model
        self.images = images
        self._seen: tuple[Floats, Size | None, BaseModelOutputWithPooling] | None = None

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
                mm_encoder_outputs={"image": self._encode(pixel_values, size)},
                logits_to_keep=torch.tensor(list(positions)),
            )
        return output.logits[0].numpy()  # type: ignore[no-any-return]

    def greedy(
        self,
        pixel_values: Floats,
        ids: Sequence[int],
        max_new_tokens: int,
        size: Size | None = None,
    ) -> GreedyAnswer:
        """transformers' own `generate`, past stop tokens."""
        prompt = torch.tensor([list(ids)])
        image = self._encode(pixel_values, size)
        model: Any = self._model  # `generate` is typed for other classes
        with unwarned():  # that nothing will stop it
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                mm_encoder_outputs={"image": image},
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=-1,  # no token has it, so nothing ends the answer early
                pad_token_id=0,  # never used
                output_logits=True,
                return_dict_in_generate=True,
            )
        assert image.last_hidden_state is not None
        return GreedyAnswer(
            features=image.last_hidden_state.numpy(),
            tokens=tuple(output.sequences[0, len(ids) :].tolist()),
            logits=torch.cat(output.logits).numpy(),  # [new tokens, V]
        )

    def _encode(self, pixel_values: Floats, size: Size | None) -> BaseModelOutputWithPooling:
        """One image, [tiles, 3, S, S]."""
        if self._seen is not None:
            pixels, seen_size, seen = self._seen
            if size == seen_size and np.array_equal(pixels, pixel_values):
                return seen
        with torch.no_grad():
            output: BaseModelOutputWithPooling = self._model.model.get_image_features(
                torch.from_numpy(pixel_values),
                None if size is None else torch.tensor([size]),
                torch.tensor([len(pixel_values)]),
                return_dict=True,
            )
        self._seen = pixel_values, size, output
        return output


__all__ = ["TorchReference"]
