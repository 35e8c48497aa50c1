"""`TrainingSet`: the samples of a corpus as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from laco_deploy.model import LacoProcessor
from laco_deploy.model.visual_inputs import VIDEO_MARK, VisualInput
from laco_deploy.training.corpus.chat import ChatEncoder, ChatOptions, visual_marks
from laco_deploy.training.corpus.corpus import Corpus
from laco_deploy.training.corpus.record import Broken, Record, SampleError, image_faults
from laco_deploy.training.corpus.video import read_frames
from laco_runtimes.images import resize_square
from laco_runtimes.tiling import TokenLayout

BYTES_PER_TOKEN = 4
"""Of English text under Qwen's vocabulary, roughly; only for grouping by length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A sample ready for the model; one of text alone has no pixels."""

    name: str
    source: str
    ids: Tensor
    """[N]."""
    labels: Tensor
    """[N], -100 where nothing is learnt."""
    cut: int = 0
    """Tokens beyond `max_length`, which were cut off."""
    pixels: Tensor | None = None
    """[T, 3, S, S], tiles of the images and frames of the videos, in the order of their marks."""
    image_sizes: Tensor | None = None
    """[V, 2], height and width in pixels of each image; of a video, S and S."""
    num_tiles: Tensor | None = None
    """[V]."""
    is_video: Tensor | None = None
    """[V], bool."""


class TrainingSet(Dataset[Encoded | Broken]):
    """Samples of a corpus as tensors; images are decoded when a sample is asked for.

    Args:
        corpus: the mixture.
        processor: of the checkpoint; gives pixels, token counts and the tokenizer.
        options: style, mask, length, tiling and frames.
    """

    def __init__(self, corpus: Corpus, processor: LacoProcessor, options: ChatOptions) -> None:
        self.corpus = corpus
        self.options = options
        self._images = processor.image_processor
        self._layout: TokenLayout = processor.token_layout
        self._encoder = ChatEncoder(
            processor.tokenizer.backend_tokenizer, processor.image_token_id, options
        )

    def __len__(self) -> int:
        return len(self.corpus)

    @property
    def lengths(self) -> list[int]:
        """Rough number of tokens of each sample, nothing decoded; below 0 for one of text alone."""
        known, layout = self.corpus.estimates, self._layout
        per_video = layout.video_tokens(self.options.max_frames)
        visual = known.images * np.int64(layout.tokens_per_tile) + known.has_video * per_video
        lengths = known.text_bytes // BYTES_PER_TOKEN + visual + 1
        return [int(length) for length in np.where(visual > 0, lengths, -lengths)]

    def __getitem__(self, index: int) -> Encoded | Broken:
        """Encode a sample. A broken one is reported, never raised."""
        try:
            record = self.corpus[index]
        except SampleError as error:
            return self.corpus.broken(index, error)
        try:
            return self._encode(record)
        except SampleError as error:
            return Broken(record.name, record.source, str(error), error.fault)

    def _encode(self, record: Record) -> Encoded:
        marks = [mark for turn in visual_marks(record) for mark in turn]
        visuals, tokens = self._see(record, marks)
        (ids, labels), cut = self._encoder.encode(record, tokens)
        return Encoded(
            name=record.name,
            source=record.source,
            ids=torch.tensor(ids),
            labels=torch.tensor(labels),
            cut=cut,
            **visuals,
        )

    def _see(self, record: Record, marks: list[str]) -> tuple[dict[str, Tensor], list[int]]:
        """What the marks stand for, decoded, and the tokens of each.

        Of several images each is one tile, squashed, as the processor has it.
        """
        if not marks:
            return {}, []
        images = iter(record.images)
        inputs = [
            VisualInput(self._frames(record.video), is_video=True, is_alone=False)
            if mark == VIDEO_MARK and record.video is not None
            else VisualInput(next(images), is_video=False, is_alone=len(marks) == 1)
            for mark in marks
        ]
        with image_faults():
            values = self._images.pack(inputs, image_mode=self.options.image_mode)
        sizes, counts = values["image_sizes"].tolist(), values["num_tiles"].tolist()
        tokens = [
            self._layout.video_tokens(count)
            if one.is_video
            else self._layout.image_tokens((size[0], size[1]), count)
            for one, size, count in zip(inputs, sizes, counts, strict=True)
        ]
        visuals = {
            "pixels": torch.from_numpy(values["pixel_values"]),
            "image_sizes": torch.tensor(sizes),
            "num_tiles": torch.tensor(counts),
            "is_video": torch.tensor([one.is_video for one in inputs]),
        }
        return visuals, tokens

    def _frames(self, path: Path) -> list[NDArray[np.uint8]]:
        """Frames of a video, squashed at once: those of full size would fill the memory."""
        side = self._layout.image_size
        return read_frames(
            path,
            max_frames=self.options.max_frames,
            fps=self.options.fps,
            prepare=lambda frame: resize_square(frame, side),
        )


__all__ = ["Encoded", "TrainingSet"]
