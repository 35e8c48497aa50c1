"""A checkpoint folder as version 0.1 wrote it: no processor, and none of the newer settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_NEW_SETTINGS = ("image_mode", "max_tiles", "image_newline", "video_pool_stride")
_OLD_MERGER_SETTINGS = ("after_block", "kind", "norm", "ratio")
# Without the system turn, which the prompts of the runtime have.
_OLD_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def rewrite_as_older(folder: Path) -> Path:
    """Bring a folder of today back to that form, in place."""
    _change(folder / "config.json", _older_config)
    _change(folder / "preprocessor_config.json", _older_preprocessor)
    _change(folder / "tokenizer_config.json", _older_tokenizer)
    (folder / "processor_config.json").unlink()
    (folder / "chat_template.jinja").write_text(_OLD_CHAT_TEMPLATE)
    return folder


def _change(path: Path, change: Any) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=2))


def _older_config(values: dict[str, Any]) -> None:
    for name in _NEW_SETTINGS:
        del values[name]
    for merger in values["mergers"]:
        for name in set(merger) - set(_OLD_MERGER_SETTINGS):
            del merger[name]


def _older_preprocessor(values: dict[str, Any]) -> None:
    values["image_processor_type"] = "CLIPImageProcessor"
    del values["image_mode"]


def _older_tokenizer(values: dict[str, Any]) -> None:
    for name in ("processor_class", "padding_side"):
        values.pop(name, None)
