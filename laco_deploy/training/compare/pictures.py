"""The training pictures as the cells share them: encoded once, pixels in one file on disk.

Several processes read them at once; the pixels are a memory map, so they are in memory once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from laco_deploy.training.dataset import IGNORE_INDEX, Sample, encode_sample
from laco_export.disk_array import disk_array
from laco_runtimes.images import Preprocessing, load_image, normalise, resize_square
from laco_runtimes.prompt import PromptTemplate


def write_pixels(
    path: Path, samples: Sequence[Sample], size: int, progress: Callable[[int, int], None]
) -> None:
    """Write the resized pictures as one array, uint8 [samples, S, S, 3]; kept if it is there."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    array = disk_array(temporary, np.uint8, (len(samples), size, size, 3))
    for index, sample in enumerate(samples):
        array[index] = resize_square(load_image(sample.image), size)
        progress(index + 1, len(samples))
    array.flush()
    del array
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


class Pictures:
    """Training samples as batches for a model of any number of visual tokens.

    Args:
        samples: in the order of the pixels.
        pixels: what `write_pixels` wrote.
        tokenizer: with special tokens off for plain text.
        template: the frozen prompt.
        preprocessing: of the model.
        pad_token_id: fills rows up on the right.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        pixels: Path,
        tokenizer: Tokenizer,
        template: PromptTemplate,
        preprocessing: Preprocessing,
        pad_token_id: int,
    ) -> None:
        self._encoded = [encode_sample(sample, tokenizer, template, 1) for sample in samples]
        self.answer_tokens = [
            sum(label != IGNORE_INDEX for label in labels) for _, labels in self._encoded
        ]
        """Supervised tokens of each sample."""
        self._pixels: NDArray[np.uint8] = np.load(pixels, mmap_mode="r", allow_pickle=False)
        self._image = template.image_token_id
        self._preprocessing = preprocessing
        self._pad = pad_token_id

    def __len__(self) -> int:
        return len(self._encoded)

    def batch(self, indices: Sequence[int], tokens_per_tile: int) -> dict[str, Tensor]:
        """Arguments of the model's `forward`.

        There is no attention mask: rows are filled up on the right, which causal attention never
        looks at from the left.
        """
        rows = [self._encoded[index] for index in indices]
        longest = max(len(ids) for ids, _ in rows) - 1 + tokens_per_tile
        input_ids = torch.full((len(rows), longest), self._pad)
        labels = torch.full((len(rows), longest), IGNORE_INDEX)
        for row, (ids, marks) in enumerate(rows):
            at = ids.index(self._image)
            wide = [*ids[:at], *[self._image] * tokens_per_tile, *ids[at + 1 :]]
            input_ids[row, : len(wide)] = torch.tensor(wide)
            behind = marks[at + 1 :]  # nothing in front of the picture is supervised
            labels[row, len(wide) - len(behind) : len(wide)] = torch.tensor(behind)
        pixels = [normalise(self._pixels[index], self._preprocessing) for index in indices]
        return {
            "input_ids": input_ids,
            "labels": labels,
            "pixel_values": torch.from_numpy(np.stack(pixels)),
        }


def batch_order(samples: int, *, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Which samples each step sees: epochs in random order, the same for every merger.

    Samples of like length are not put together: here they are of like content too, and batches
    should be mixtures. Whether that matters was not measured by itself.
    """
    rng = np.random.default_rng(seed)
    stream: list[int] = []
    while len(stream) < batch_size * steps:
        stream += rng.permutation(samples).tolist()
    return [stream[step * batch_size : (step + 1) * batch_size] for step in range(steps)]


__all__ = ["Pictures", "batch_order", "write_pixels"]
