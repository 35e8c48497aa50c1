"""How a folder for another runtime is described in the table, and what several of them share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from laco_export.precision import Module
from laco_runtimes.errors import ArgumentError, ExportError
from laco_runtimes.manifest import TOKENIZER_NAME
from laco_runtimes.prompt import Ids, PromptTemplate

if TYPE_CHECKING:  # the targets import the table of layouts
    from laco_export.targets.base import FinishRequest

TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class Layout:
    """One row of the table of layouts: a folder in the bundle that another runtime loads.

    The folder is complete: it can be copied out of the bundle. Where it is the only layout of a
    bundle, the bundle's own engine runs the graphs in it, so nothing is there twice.
    """

    name: str
    """Also the name of the folder."""
    graphs: Mapping[str, str]
    """Path of each graph in the folder, with `{dtype}` for what `dtypes` has."""
    dtypes: Mapping[str, str]
    """What a precision adds to the name of a file; precisions that are not here cannot be had."""
    write: Callable[[Layout, FinishRequest], None]
    """Make the folder complete."""

    def path(self, module: str, precision: str) -> str:
        """Path of a graph in the bundle."""
        return f"{self.name}/{self.graphs[module].format(dtype=self.dtypes[precision])}"

    def check(self, precision: str) -> None:
        """Refuse a precision that the runtime does not take.

        Raises:
            ArgumentError: it does not.
        """
        if precision not in self.dtypes:
            raise ArgumentError(
                f"the layout {self.name} cannot be had in {precision}. "
                f"Export with one of: {', '.join(self.dtypes)}."
            )

    def bring(self, request: FinishRequest) -> dict[Module, Path]:
        """Copy the graphs of the bundle to where they belong, unless they are there."""
        # Tables are built from this module, so what they are built with comes late.
        from laco_export.targets.onnxruntime_weights import copy_graph

        facts = request.facts
        sources: dict[Module, str] = {
            "vision_encoder": request.variants[0].vision_encoder,
            "embed_tokens": facts.embed_tokens,
            "decoder": facts.decoder,
        }
        brought: dict[Module, Path] = {}
        for module, source in sources.items():
            path = self.path(module, facts.precision[module])
            if path != source:
                copy_graph(request.root / source, request.root / path)
            brought[module] = request.root / path
        return brought


def chat_template(prompt: PromptTemplate, tokenizer: Tokenizer, image: str | None = None) -> str:
    """The bundle's prompt as a Jinja template for `messages`, answer opening included.

    A content is text or a list of parts; images stand at the front of their turn, as in training.

    Args:
        prompt: segments as ids.
        tokenizer: turns them back into text.
        image: text that stands for one image, with what is behind it; by default the image token
            and `prompt.after_image`.
    """

    def text(ids: Ids) -> str:
        return json.dumps(_decoded(tokenizer, ids), ensure_ascii=False)

    opening = _decoded(tokenizer, prompt.user_open)
    shown = image or _decoded(tokenizer, (prompt.image_token_id, *prompt.after_image))
    return "".join(
        (
            "{%- if messages[0]['role'] != 'system' -%}{{ " + text(prompt.system) + " }}",
            "{%- endif -%}",
            "{%- for message in messages -%}",
            "{%- if message['role'] == 'system' -%}{{ ",
            json.dumps(opening.replace("user", "system"), ensure_ascii=False),
            " }}{%- elif message['role'] == 'user' -%}{{ " + text(prompt.user_open) + " }}",
            "{%- endif -%}",
            "{%- if message['content'] is string -%}{{ message['content'] }}",
            "{%- else -%}",
            "{%- for part in message['content'] -%}",
            "{%- if part['type'] == 'image' -%}{{ " + json.dumps(shown) + " }}{%- endif -%}",
            "{%- endfor -%}",
            "{%- for part in message['content'] -%}",
            "{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}",
            "{%- endfor -%}",
            "{%- endif -%}",
            "{%- if message['role'] == 'user' -%}{{ " + text(prompt.user_close) + " }}",
            "{%- else -%}{{ " + text(prompt.assistant_close) + " }}{%- endif -%}",
            "{%- endfor -%}",
        )
    )


def read_tokenizer(root: Path) -> tuple[Tokenizer, dict[str, Any], dict[str, Any]]:
    """The tokenizer of a bundle, its file, and `tokenizer_config.json` or nothing."""
    path = root / TOKENIZER_NAME
    config = root / TOKENIZER_CONFIG
    return (
        Tokenizer.from_file(str(path)),
        json.loads(path.read_text(encoding="utf-8")),
        json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {},
    )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def token_text(tokenizer: Tokenizer, index: int) -> str:
    """Text of one token.

    Raises:
        ExportError: there is none.
    """
    found = tokenizer.id_to_token(index)
    if found is None:
        raise ExportError(
            f"the tokenizer has no token {index}, which the prompt needs. Check the checkpoint."
        )
    return str(found)


def _decoded(tokenizer: Tokenizer, ids: Ids) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


__all__ = [
    "TOKENIZER_CONFIG",
    "Layout",
    "chat_template",
    "read_tokenizer",
    "token_text",
    "write_json",
]
