"""The same few samples in every format, and a processor to encode them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from laco_deploy.model import LacoProcessor
from laco_deploy.training.tokenizer import IMAGE_TOKEN, train_tokenizer
from laco_runtimes.images import Preprocessing
from tests.bundles import IMAGE_SIZE, PROMPTS, random_config

Entry = dict[str, Any]


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]


def picture(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


# What each format is made of: id, dialogue, and the contents of the image if there is one.
CONTENT: tuple[tuple[str, list[dict[str, str]], bytes | None], ...] = (
    ("one", turns("<image>\nWhat is it?", "A dot.", "Where?", "Left."), picture(1)),
    ("text", turns("Name the colour.", "Réd 红"), None),
    ("jpeg", turns("How many dots?\n<image>", "3"), picture(2, kind="JPEG")),
    ("webp", turns("<image>Where?", "Up"), picture(3, kind="WEBP")),
)


def llava_entries(folder: Path, content: Sequence[Any] = CONTENT) -> list[Entry]:
    """Write the images; the entries that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, dialogue, image in content:
        entry: Entry = {"id": name, "conversations": dialogue, "data_source": "made"}
        if image is not None:
            (folder / f"{name}.png").write_bytes(image)
            entry["image"] = f"{name}.png"
        entries.append(entry)
    return entries


def write_json(path: Path, entries: Sequence[Any]) -> Path:
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def write_jsonl(path: Path, entries: Sequence[Any]) -> Path:
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_parquet(path: Path, content: Sequence[Any] = CONTENT, *, group: int = 2) -> Path:
    rows = [
        {
            "id": name,
            "image": None if image is None else {"bytes": image, "path": f"{name}.png"},
            "conversations": dialogue,
            "data_source": "made",
        }
        for name, dialogue, image in content
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_shard(path: Path, content: Sequence[Any] = CONTENT) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, dialogue, image in content:
            entry = {"id": name, "conversations": dialogue, "data_source": "made"}
            add_member(tar, f"{name}.json", json.dumps(entry).encode())
            if image is not None:
                add_member(tar, f"{name}.png", image)
    return path


def tokenizer() -> Any:
    return train_tokenizer([*PROMPTS, "system user assistant You are a helpful assistant."])


def processor(**settings: Any) -> LacoProcessor:
    """16 visual tokens (4 x 4) per tile of 56 pixels."""
    own = tokenizer()
    config = random_config(vocab_size=len(own))
    config.image_token_id = own.convert_tokens_to_ids(IMAGE_TOKEN)
    for name, value in settings.items():
        setattr(config, name, value)
    spec = Preprocessing(image_size=IMAGE_SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    return LacoProcessor.from_config(config, own, spec)
