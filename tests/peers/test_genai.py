"""onnxruntime-genai loads its folder as it is, and answers as PyTorch does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from laco_export.precision import Precisions
from tests.export.onnxruntime.work import Source, compile_bundle

og: Any = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")

TOKENS = 12
IMAGE = Image.radial_gradient("L").convert("RGB")
PROMPTS = ("How many dots are there in the picture?", "What is it?")


@pytest.fixture(scope="module")
def folder(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("genai") / "work"
    layout = "onnxruntime-genai"
    return compile_bundle(source, root, Precisions("fp32", "fp32"), [layout]).root / layout


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return og.Model(str(folder))


def greedy(model: Any, inputs: Any, length: int) -> list[int]:
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=length + TOKENS, do_sample=False)
    generator = og.Generator(model, params)
    generator.set_inputs(inputs)
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


@pytest.mark.parametrize("prompt", PROMPTS)
def test_our_ids_and_pixels_get_pytorchs_answer(source: Source, model: Any, prompt: str) -> None:
    ids = source.ids(prompt)
    inputs = og.NamedTensors()
    inputs["input_ids"] = np.array([ids], np.int32)
    inputs["pixel_values"] = source.pixels(IMAGE)[None]  # [1, images, 3, S, S]
    inputs["num_image_tokens"] = np.array([source.tokens], np.int64)
    assert greedy(model, inputs, len(ids)) == source.expected(IMAGE, prompt, TOKENS)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_its_own_template_and_processor_make_our_prompt_and_pixels(
    source: Source, model: Any, tmp_path: Path, prompt: str
) -> None:
    IMAGE.save(tmp_path / "image.png")
    tokenizer, processor = og.Tokenizer(model), model.create_multimodal_processor()
    parts = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = tokenizer.apply_chat_template(
        json.dumps([{"role": "user", "content": parts}]), add_generation_prompt=True
    )
    inputs = processor(text, images=og.Images.open(str(tmp_path / "image.png")))
    ids, ours = inputs["input_ids"].as_numpy()[0].tolist(), source.ids(prompt)
    # The marks stand where our prompt has a line break, and are read as one by embedding.onnx.
    differing = [(a, b) for a, b in zip(ids, ours, strict=True) if a != b]
    template = source.manifest.prompt
    assert [b for _, b in differing] == [template.user_open[-1], *template.after_image]
    pixels = inputs["pixel_values"].as_numpy()[0]
    np.testing.assert_allclose(pixels, source.pixels(IMAGE), atol=0.02)
    assert greedy(model, inputs, len(ids)) == source.expected(IMAGE, prompt, TOKENS)


def test_marks_are_embedded_as_the_tokens_they_stand_for(source: Source, folder: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "embedding.onnx")
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    marks = {one["content"]: one["id"] for one in added}
    none = np.zeros((0, source.manifest.language.hidden_size), np.float32)
    template = source.manifest.prompt

    def embed(*ids: int) -> Any:
        values = {"input_ids": np.array([ids], np.int64), "image_features": none}
        return session.run(None, values)[0][0]

    np.testing.assert_array_equal(
        embed(marks["<|vision_start|>"], 9, marks["<|vision_end|>"]),
        embed(template.user_open[-1], 9, template.after_image[0]),
    )
    # A model may say its image token; there is nothing to put there then.
    assert embed(template.image_token_id).shape == (1, source.manifest.language.hidden_size)
