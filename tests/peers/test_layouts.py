"""What every layout promises, without the runtime it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from jinja2 import Environment
from onnx.external_data_helper import uses_external_data
from PIL import Image
from tokenizers import Tokenizer

from laco_export.layouts import LAYOUTS
from laco_export.precision import Precisions
from laco_export.targets.onnxruntime import TARGET
from laco_runtimes.errors import ArgumentError
from laco_runtimes.prompt import encode_text, load_tokenizer
from tests.export.onnxruntime.work import Compiled, Source, compile_bundle

EXACT = Precisions("fp32", "fp32")
IMAGE = Image.radial_gradient("L").convert("RGB")


@pytest.fixture(scope="module")
def both(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root = tmp_path_factory.mktemp("both") / "work"
    return compile_bundle(source, root, Precisions("int8", "int4"), tuple(LAYOUTS))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rendered(folder: Path, messages: list[dict[str, Any]]) -> str:
    template = read(folder / "tokenizer_config.json")["chat_template"]
    return Environment().from_string(template).render(messages=messages, add_generation_prompt=True)


def turn(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


def test_the_target_offers_the_layouts_of_the_table() -> None:
    assert TARGET.layouts == tuple(LAYOUTS)


@pytest.mark.parametrize("text", ["What is it?", "  two  blanks", "Ünïcode 12 & <b>", "a\n\nb"])
def test_the_template_of_transformersjs_gives_the_pipelines_ids(
    source: Source, both: Compiled, text: str
) -> None:
    folder = both.root / "transformersjs"
    token = read(folder / "processor_config.json")["image_token"]
    prompt = rendered(folder, [turn(text)]).replace(token, token * source.tokens, 1)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt).ids
    assert ids == source.ids(text)


def test_a_second_turn_and_a_system_turn_are_those_of_chatml(
    source: Source, both: Compiled
) -> None:
    folder, template = both.root / "transformersjs", source.manifest.prompt
    tokenizer = load_tokenizer(source.root / "tokenizer.json")
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(rendered(folder, messages)).ids
    words = {text: encode_text(tokenizer, text) for text in ("One?", "Two.", "Three?")}
    tail = [
        *template.turn(words["One?"]),
        *words["Two."],
        *template.assistant_close,
        *template.turn(words["Three?"]),
    ]
    assert ids[-len(tail) :] == tail
    assert "system\nBe short." in rendered(folder, messages)


def test_transformersjs_counts_as_many_image_tokens_as_the_encoder_gives(
    source: Source, both: Compiled
) -> None:
    folder = both.root / "transformersjs"
    processor, images = (
        read(folder / f"{name}_config.json") for name in ("processor", "preprocessor")
    )
    across = images["size"]["width"] // processor["patch_size"]
    assert across**2 + processor["num_additional_image_tokens"] == source.tokens


def test_file_names_of_transformersjs_say_the_precision_it_is_told(both: Compiled) -> None:
    folder = both.root / "transformersjs"
    told = read(folder / "config.json")["transformers.js_config"]
    assert told["dtype"] == {
        "vision_encoder": "int8",
        "embed_tokens": "int8",
        "decoder_model_merged": "q4",
    }
    names = {path.name for path in (folder / "onnx").glob("*.onnx")}
    assert names == {
        "vision_encoder_int8.onnx",
        "embed_tokens_int8.onnx",
        "decoder_model_merged_q4.onnx",
    }
    assert told["use_external_data_format"] == dict.fromkeys(sorted(names), True) or all(
        (folder / "onnx" / f"{name}_data").is_file() == used
        for name, used in told["use_external_data_format"].items()
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_can_be_copied_out_of_its_bundle(both: Compiled, name: str) -> None:
    folder = both.root / name
    graphs = list(folder.rglob("*.onnx"))
    assert graphs
    for path in graphs:
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if uses_external_data(tensor):
                place = {entry.key: entry.value for entry in tensor.external_data}["location"]
                assert (path.parent / place).is_file()
                assert "/" not in place


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_only_layout_holds_the_graphs_that_the_bundle_itself_runs(
    source: Source, tmp_path: Path, name: str
) -> None:
    compiled = compile_bundle(source, tmp_path / "work", EXACT, [name])
    facts = compiled.facts
    for path in (compiled.variant.vision_encoder, facts.embed_tokens, facts.decoder):
        assert path.startswith(f"{name}/")
    assert not (compiled.root / "onnxruntime").exists()
    prompt, pixels = "What is it?", source.pixels(IMAGE)
    assert compiled.engine().vision.encode(pixels).shape[1] == source.tokens
    assert compiled.answer(compiled.engine(), IMAGE, prompt, 8) == source.expected(IMAGE, prompt, 8)


def test_a_precision_that_a_runtime_does_not_take_is_refused(
    source: Source, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=r"transformersjs cannot be had in bf16.*fp32, fp16"):
        compile_bundle(source, tmp_path / "work", Precisions("bf16", "bf16"), ["transformersjs"])
