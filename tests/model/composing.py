"""Folders of tiny published models, as `laco init` takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM

from laco_deploy.training.tokenizer import IMAGE_TOKEN, train_tokenizer
from tests.model.tower_samples import HEADS, WIDTH, published_model, randomize

TOKENIZER = train_tokenizer(["system user assistant You are a helpful assistant.", "What is it?"])
ROWS = len(TOKENIZER) + 8
"""Of the language model's embedding: eight more than the tokenizer needs."""


def write_vision(folder: Path, kind: str = "aimv2_vision_model", **settings: Any) -> Any:
    model = published_model(kind, **settings)
    model.save_pretrained(folder)
    return model


def write_language_model(folder: Path, **settings: Any) -> Qwen2ForCausalLM:
    shape: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "vocab_size": ROWS,
        "tie_word_embeddings": True,
    }
    model: Qwen2ForCausalLM = randomize(Qwen2ForCausalLM(Qwen2Config(**{**shape, **settings})))
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return model


def rename_token(folder: Path, old: str = IMAGE_TOKEN, new: str = "<|box_start|>") -> None:
    """Make it a tokenizer that has never heard of `old`."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"][new] = values["model"]["vocab"].pop(old)
    for token in values["added_tokens"]:
        if token["content"] == old:
            token["content"] = new
    path.write_text(json.dumps(values))


def add_tokens(folder: Path, count: int) -> None:
    """Add special tokens behind the last id."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    model = values["added_tokens"][0]
    start = 1 + max(values["model"]["vocab"].values())
    values["added_tokens"] += [
        {**model, "id": start + index, "content": f"<|extra_{index}|>"} for index in range(count)
    ]
    path.write_text(json.dumps(values))
