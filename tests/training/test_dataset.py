"""Samples become the ids, labels and pixels that the runtime would see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from laco_deploy.training.dataset import (
    IGNORE_INDEX,
    ChatDataset,
    Collator,
    encode_sample,
    read_samples,
    write_samples,
)
from laco_deploy.training.tokenizer import IMAGE_TOKEN, SPECIAL_TOKENS, train_tokenizer
from laco_runtimes.errors import DataError
from laco_runtimes.images import Preprocessing, load_image, preprocess
from laco_runtimes.prompt import PromptTemplate, chatml, load_tokenizer

SPEC = Preprocessing(image_size=28, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
ENTRY = {
    "id": "one",
    "image": "one.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat number is this?"},
        {"from": "gpt", "value": "47"},
        {"from": "human", "value": "And the left digit?"},
        {"from": "gpt", "value": "4"},
    ],
    "group": "digits",
    "task": ["read_number", "left_digit"],
}


def write(folder: Path, entries: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "one.png")
    path = folder / "data.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    texts = ["What number is this?", "47", "4", "And the left digit?", "system", "user"]
    train_tokenizer(texts).save_pretrained(tmp_path)
    return load_tokenizer(tmp_path / "tokenizer.json")


@pytest.fixture
def template(tokenizer: Tokenizer) -> PromptTemplate:
    return chatml(tokenizer, image_token_id=tokenizer.token_to_id(IMAGE_TOKEN))


def test_only_answers_and_their_end_are_supervised(
    tmp_path: Path, tokenizer: Tokenizer, template: PromptTemplate
) -> None:
    sample = read_samples(write(tmp_path, [ENTRY]))[0]
    ids, labels = encode_sample(sample, tokenizer, template, tokens_per_tile=9)
    supervised = [token for token in labels if token != IGNORE_INDEX]
    assert tokenizer.decode(supervised, skip_special_tokens=False) == "47<|im_end|>4<|im_end|>"
    assert all(label in (token, IGNORE_INDEX) for token, label in zip(ids, labels, strict=True))
    assert ids.count(template.image_token_id) == 9


def test_the_dialogue_is_chatml(
    tmp_path: Path, tokenizer: Tokenizer, template: PromptTemplate
) -> None:
    sample = read_samples(write(tmp_path, [ENTRY]))[0]
    ids, _ = encode_sample(sample, tokenizer, template, tokens_per_tile=1)
    assert tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|image_pad|>\nWhat number is this?<|im_end|>\n"
        "<|im_start|>assistant\n47<|im_end|>\n"
        "<|im_start|>user\nAnd the left digit?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n"
    )


def test_pixels_are_those_of_the_runtime(
    tmp_path: Path, tokenizer: Tokenizer, template: PromptTemplate
) -> None:
    samples = read_samples(write(tmp_path, [ENTRY]))
    dataset = ChatDataset(samples, tokenizer, template, SPEC, 4)
    batch = Collator(SPEC, 0)([dataset[0], dataset[0]])  # the second time from memory
    expected = preprocess(load_image(tmp_path / "one.png"), SPEC)
    for row in batch["pixel_values"].numpy():
        assert np.array_equal(row[None], expected)


def test_batches_are_padded_on_the_right_without_supervision(
    tmp_path: Path, tokenizer: Tokenizer, template: PromptTemplate
) -> None:
    short = {**ENTRY, "conversations": ENTRY["conversations"][:2], "task": ["read_number"]}
    samples = read_samples(write(tmp_path, [ENTRY, short]))
    dataset = ChatDataset(samples, tokenizer, template, SPEC, 4)
    batch = Collator(SPEC, 0)([dataset[0], dataset[1]])
    length = int(batch["attention_mask"][1].sum())
    assert batch["attention_mask"][0].all()
    assert length == len(dataset[1]["input_ids"]) < batch["input_ids"].shape[1]
    assert (batch["input_ids"][1, length:] == 0).all()
    assert (batch["labels"][1, length:] == IGNORE_INDEX).all()


def test_written_samples_read_back_the_same(tmp_path: Path) -> None:
    samples = read_samples(write(tmp_path, [ENTRY]))
    write_samples(tmp_path / "copy", samples)
    again = read_samples(tmp_path / "copy" / "samples.json")
    assert [(s.turns, s.group, s.tasks) for s in again] == [
        (s.turns, s.group, s.tasks) for s in samples
    ]
    assert again[0].image.read_bytes() == samples[0].image.read_bytes()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "holds no list"),
        ({"id": 1}, "holds no list"),
        ([{**ENTRY, "image": None}], "'one'"),
        ([{"id": "x", "image": "one.png"}], "'x'"),
        ([{**ENTRY, "conversations": ENTRY["conversations"][:1]}], "human, gpt"),
        ([{**ENTRY, "conversations": ENTRY["conversations"][2:]}], "exactly one <image>"),
        (["text"], "sample 0"),
    ],
)
def test_broken_samples_are_named(tmp_path: Path, entries: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_samples(write(tmp_path, entries))


def test_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("not json")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_samples(tmp_path / "x.json")


def test_tokenizer_is_deterministic_and_loses_no_text(tmp_path: Path) -> None:
    texts = ["How many shapes are there?", "three", "blue"] * 3
    first, second = train_tokenizer(texts, 300), train_tokenizer(texts, 300)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert [first.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    text = "Grüße, 日本 🙂 \n\n 12 "
    assert first.decode(first.encode(text)) == text
