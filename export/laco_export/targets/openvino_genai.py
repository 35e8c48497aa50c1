"""What makes the `openvino/` folder a model of `openvino_genai.VLMPipeline`.

The pipeline's `llava` type takes any encoder: it counts the visual tokens it is given, and puts as
many `<image>` and a line break in front of the question (upstream: openvino.genai
src/cpp/src/visual_language/llava/classes.cpp). The rest of our prompt is its chat template.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer

from laco_export.targets.base import FinishRequest
from laco_runtimes.bundle import write_atomic
from laco_runtimes.engines.openvino import import_openvino
from laco_runtimes.errors import ExportError, MissingPackageError
from laco_runtimes.manifest import TOKENIZER_NAME
from laco_runtimes.prompt import PromptTemplate

FOLDER = "openvino"

EXTRA = "openvino-export"
"""Extra of laco-deploy that brings what only an export needs."""

GENAI_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "vision_encoder": "openvino_vision_embeddings_model",
        "embed_tokens": "openvino_text_embeddings_model",
        "decoder": "openvino_language_model",
    }
)
"""Stems of the files that the pipeline opens, by the graphs' own names."""

IMAGE_TAG = "<image>"
"""Hard-coded in the pipeline: one of it stands for one visual token."""

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ SYSTEM }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""`SYSTEM` is replaced by the model's own system turn, as a string."""


def check_installed() -> None:
    """Refuse an export that could not be finished, before it takes minutes.

    Raises:
        MissingPackageError: openvino_tokenizers or transformers is not installed.
    """
    for package in ("openvino_tokenizers", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(package, EXTRA)


def write_genai_files(request: FinishRequest) -> None:
    """Add tokenizer, configuration and chat template to the graphs of `openvino/`.

    A model that cuts images into tiles or ends them with `image_newline` gets none: the pipeline
    would show it other visual tokens than it has learnt, and now refuses the folder instead.

    Raises:
        ExportError: a prompt or a tokenizer that the pipeline cannot be given.
        MissingPackageError: openvino_tokenizers or transformers is not installed.
    """
    if not request.layout.one_tile:
        return
    folder = request.root / FOLDER
    source = (request.root / TOKENIZER_NAME).read_text(encoding="utf-8")
    plain = Tokenizer.from_str(source)
    template = chat_template(plain, request.prompt)
    tagged = with_image_tag(source, request.prompt.image_token_id)
    _write_tokenizer(folder, tagged, request.prompt, template)

    side, facts = request.preprocessing.image_size, request.facts
    stop = list(request.prompt.stop)
    files: dict[str, Any] = {
        "config.json": {
            "model_type": "llava",
            "image_token_index": request.prompt.image_token_id,
            "hidden_size": facts.language.hidden_size,
            "vision_config": {
                "image_size": side,
                "patch_size": facts.vision.patch_size,
                "hidden_size": facts.vision.width,
            },
        },
        "generation_config.json": {"do_sample": False, "eos_token_id": stop},
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "image_mean": request.preprocessing.mean,
            "image_std": request.preprocessing.std,
            "resample": 3,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": plain.id_to_token(stop[0]),
            "chat_template": template,
        },
    }
    for name, content in files.items():
        write_atomic(folder / name, (json.dumps(content, indent=2) + "\n").encode())


def chat_template(tokenizer: Tokenizer, prompt: PromptTemplate) -> str:
    """The frozen segments of a prompt as a template, for text that they frame.

    Raises:
        ExportError: the segments are not those of ChatML.
    """

    def text(ids: tuple[int, ...]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    segments = {
        "user_open": (prompt.user_open, "<|im_start|>user\n"),
        "after_image": (prompt.after_image, "\n"),
        "user_close": (prompt.user_close, "<|im_end|>\n<|im_start|>assistant\n"),
        "assistant_close": (prompt.assistant_close, "<|im_end|>\n"),
        "system": (prompt.system, text(prompt.system)),
    }
    for name, (ids, expected) in segments.items():
        again = tuple(tokenizer.encode(expected, add_special_tokens=False).ids)
        if text(ids) != expected or again != ids:
            raise ExportError(
                f"segment {name!r} of the prompt is {text(ids)!r}, which openvino_genai's pipeline "
                f"cannot be given as a template. Freeze it as {expected!r}."
            )
    return CHATML.replace("SYSTEM", json.dumps(text(prompt.system), ensure_ascii=False))


def with_image_tag(tokenizer: str, image_token_id: int) -> str:
    """A `tokenizer.json` whose image token is spelled `<image>`, with the same ids.

    Raises:
        ExportError: it has no such special token, or another one is spelled so.
    """
    content = json.loads(tokenizer)
    vocabulary = content["model"]["vocab"]
    added = {token["id"]: token for token in content["added_tokens"]}
    if not isinstance(vocabulary, dict) or image_token_id not in added:
        raise ExportError(
            f"id {image_token_id}, the image token, is not a special token of a BPE tokenizer. "
            "Use a tokenizer of the Qwen family."
        )
    old = added[image_token_id]["content"]
    spelled = {token["content"]: index for index, token in added.items()} | vocabulary
    if spelled.get(IMAGE_TAG, image_token_id) != image_token_id:
        raise ExportError(
            f"another token than the image token is spelled {IMAGE_TAG!r}, which openvino_genai's "
            "pipeline looks for. Rename it in tokenizer.json."
        )
    added[image_token_id]["content"] = IMAGE_TAG
    if old in vocabulary:
        vocabulary[IMAGE_TAG] = vocabulary.pop(old)
    return json.dumps(content, ensure_ascii=False)


def _write_tokenizer(folder: Path, source: str, prompt: PromptTemplate, template: str) -> None:
    openvino = import_openvino()
    check_installed()
    converter = importlib.import_module("openvino_tokenizers")
    transformers = importlib.import_module("transformers")
    tokenizer = Tokenizer.from_str(source)
    end = tokenizer.id_to_token(prompt.stop[0])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=end, chat_template=template
    )
    try:
        both = converter.convert_tokenizer(wrapped, with_detokenizer=True, skip_special_tokens=True)
    except Exception as error:  # of many kinds, by what the converter does not know
        raise ExportError(
            f"openvino_tokenizers cannot convert this tokenizer: {error}. "
            "Use a tokenizer of the Qwen family."
        ) from error
    for name, model in zip(("openvino_tokenizer", "openvino_detokenizer"), both, strict=True):
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


__all__ = [
    "EXTRA",
    "FOLDER",
    "GENAI_NAMES",
    "IMAGE_TAG",
    "chat_template",
    "check_installed",
    "with_image_tag",
    "write_genai_files",
]
