"""LLaVA-format samples as tensors: token ids, labels on the answers, pixels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from laco_runtimes.errors import DataError
from laco_runtimes.images import Preprocessing, load_image, normalise, resize_square
from laco_runtimes.prompt import PromptTemplate, encode_text

IMAGE_MARKER = "<image>"
IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture with its dialogue; `tasks` has one name per turn."""

    image: Path
    turns: tuple[Turn, ...]
    group: str
    tasks: tuple[str, ...]


def read_samples(path: Path) -> list[Sample]:
    """Read a LLaVA-format JSON file; image paths are relative to its folder.

    Raises:
        DataError: not such a file, or an entry without image or dialogue (its id is named).
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"'{path}' cannot be read as JSON. Give a file in the format of LLaVA."
        ) from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"'{path}' holds no list of samples. Give a file in the format of LLaVA.")
    return [_sample(entry, index, path) for index, entry in enumerate(entries)]


def write_samples(folder: Path, samples: Sequence[Sample]) -> None:
    """Copy samples with their pictures into a new folder, as `samples.json` and PNG files."""
    folder.mkdir()
    entries = []
    for index, sample in enumerate(samples):
        name = f"{index:02d}{sample.image.suffix}"
        shutil.copyfile(sample.image, folder / name)
        roles = ["human", "gpt"] * len(sample.turns)
        texts = [text for turn in sample.turns for text in (turn.prompt, turn.answer)]
        texts[0] = f"{IMAGE_MARKER}\n{texts[0]}"
        entries.append(
            {
                "id": sample.image.stem,
                "image": name,
                "conversations": [
                    {"from": role, "value": text} for role, text in zip(roles, texts, strict=True)
                ],
                "group": sample.group,
                "task": list(sample.tasks),
            }
        )
    (folder / "samples.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def _sample(entry: Any, index: int, path: Path) -> Sample:
    try:
        turns = entry["conversations"]
        roles = [turn["from"] for turn in turns]
        if roles != ["human", "gpt"] * (len(turns) // 2) or not turns:
            raise DataError("turns must go human, gpt, human, gpt, ...")
        values = [str(turn["value"]) for turn in turns]
        if values[0].count(IMAGE_MARKER) != 1 or any(IMAGE_MARKER in v for v in values[1:]):
            raise DataError(f"exactly one {IMAGE_MARKER} is needed, in the first turn")
        pairs = tuple(
            Turn(prompt.replace(IMAGE_MARKER, "").strip(), answer)
            for prompt, answer in zip(values[::2], values[1::2], strict=True)
        )
        group, tasks = str(entry.get("group", "")), entry.get("task") or [""] * len(pairs)
        return Sample(path.parent / entry["image"], pairs, group, tuple(tasks))
    except (KeyError, TypeError, DataError) as error:
        name = entry.get("id", index) if isinstance(entry, dict) else index
        raise DataError(
            f"sample {name!r} of '{path}' is broken ({error}). Mend it or take it out."
        ) from error


class ChatDataset(Dataset[dict[str, Any]]):
    """Samples ready for the model. Pixels are kept in memory as uint8 after the first read.

    Args:
        samples: what `read_samples` gives.
        tokenizer: with special tokens off for plain text (`load_tokenizer`).
        template: the frozen prompt.
        preprocessing: of the checkpoint.
        tokens_per_tile: N', visual tokens of one image.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokenizer: Tokenizer,
        template: PromptTemplate,
        preprocessing: Preprocessing,
        tokens_per_tile: int,
    ) -> None:
        self.samples = samples
        self._preprocessing = preprocessing
        self._encoded = [
            encode_sample(sample, tokenizer, template, tokens_per_tile) for sample in samples
        ]
        self._pixels: list[NDArray[np.uint8] | None] = [None] * len(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self._pixels[index]
        if pixels is None:
            image = load_image(self.samples[index].image)
            pixels = resize_square(image, self._preprocessing.image_size)
            self._pixels[index] = pixels
        ids, labels = self._encoded[index]
        return {"input_ids": ids, "labels": labels, "pixels": pixels}


def encode_sample(
    sample: Sample, tokenizer: Tokenizer, template: PromptTemplate, tokens_per_tile: int
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a dialogue; only answers and the token behind each are supervised."""
    ids, labels = list(template.system), [IGNORE_INDEX] * len(template.system)
    for number, turn in enumerate(sample.turns):
        images = (tokens_per_tile,) if number == 0 else ()
        question = template.turn(encode_text(tokenizer, turn.prompt), images)
        answer = [*encode_text(tokenizer, turn.answer), template.assistant_close[0]]
        rest = template.assistant_close[1:]
        ids += [*question, *answer, *rest]
        labels += [*[IGNORE_INDEX] * len(question), *answer, *[IGNORE_INDEX] * len(rest)]
    return ids, labels


@dataclass(frozen=True, slots=True)
class Collator:
    """Pad a batch on the right and normalise its pixels."""

    preprocessing: Preprocessing
    pad_token_id: int

    def __call__(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Stack samples of a `ChatDataset` into the arguments of the model's `forward`."""
        longest = max(len(item["input_ids"]) for item in batch)

        def pad(key: str, value: int) -> Tensor:
            return torch.tensor(
                [item[key] + [value] * (longest - len(item[key])) for item in batch]
            )

        lengths = torch.tensor([len(item["input_ids"]) for item in batch])
        pixels = np.stack([normalise(item["pixels"], self.preprocessing) for item in batch])
        return {
            "input_ids": pad("input_ids", self.pad_token_id),
            "labels": pad("labels", IGNORE_INDEX),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
            "pixel_values": torch.from_numpy(pixels),
        }


__all__ = [
    "ChatDataset",
    "Collator",
    "Sample",
    "Turn",
    "encode_sample",
    "read_samples",
    "write_samples",
]
