"""What a corpus asks of a reader of one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from laco_deploy.training.corpus.record import Record


@dataclass(frozen=True, slots=True)
class FileSettings:
    """A file of a mixture entry."""

    path: Path
    media_root: Path
    """Folder that paths of images and videos start from."""
    label: str
    """Name of the data set, for samples that state none."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """What is known of samples before anything is decoded, one element per sample."""

    text_bytes: NDArray[np.int32]
    images: NDArray[np.int16]
    has_video: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, bool]]) -> Estimates:
        """From (text_bytes, images, has_video) per sample."""
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        return cls(
            np.minimum(columns[0], 2**31 - 1).astype(np.int32),
            np.minimum(columns[1], 2**15 - 1).astype(np.int16),
            np.array(columns[2], np.bool_),
        )

    @classmethod
    def join(cls, parts: Sequence[Estimates]) -> Estimates:
        """Those of several files, one after the other."""
        return cls(
            np.concatenate([part.text_bytes for part in parts]),
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.has_video for part in parts]),
        )

    def select(self, rows: NDArray[np.int64]) -> Estimates:
        """Those of the given samples."""
        return Estimates(self.text_bytes[rows], self.images[rows], self.has_video[rows])


class Reader(Protocol):
    """Samples of one file, in any order.

    It holds an index and no open file that a second process would share, so that it can be pickled
    and forked.
    """

    label: str
    """Name of the data set, where a sample states none."""
    estimates: Estimates
    fingerprint: str
    """Hex digest of everything but the contents of images and videos."""
    ignored: int
    """Parts of the file that are of a kind that is not read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Read a sample.

        Raises:
            SampleError: this sample cannot be used.
        """
        ...

    def place(self, index: int) -> str:
        """Where a sample is, for one that has no id or cannot be read."""
        ...


def text_bytes_of(conversations: Any) -> int:
    """Length of a dialogue in UTF-8; 0 for what is not one."""
    if not isinstance(conversations, Sequence) or isinstance(conversations, str | bytes):
        return 0
    texts = [
        turn.get("value", turn.get("content"))
        for turn in conversations
        if isinstance(turn, Mapping)
    ]
    return sum(len(text.encode("utf-8", "replace")) for text in texts if isinstance(text, str))


__all__ = ["Estimates", "FileSettings", "Reader", "text_bytes_of"]
