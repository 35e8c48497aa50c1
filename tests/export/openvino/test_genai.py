"""The folder as it is, in openvino_genai's own pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from laco_export.precision import Precisions
from laco_export.targets.openvino_genai import (
    IMAGE_TAG,
    chat_template,
    with_image_tag,
)
from laco_runtimes.engines.openvino import import_openvino
from laco_runtimes.errors import ExportError
from laco_runtimes.prompt import load_tokenizer
from tests.export.openvino.work import (
    QUESTIONS,
    TINY,
    Compile,
    Compiled,
    Question,
    Source,
    finish,
)
from tests.genai_pipelines import kept

EXACT = Precisions("fp32", "fp32")
TOKENS = 8


@pytest.fixture(scope="module")
def bundle(compiled: Compile) -> Compiled:
    return finish(compiled(EXACT))


@pytest.fixture(scope="module", params=["SDPA", "PA"])
def pipeline(bundle: Compiled, request: pytest.FixtureRequest) -> Any:
    """One attention backend. An explicit PA never falls back: openvino_genai raises instead."""
    import_openvino()
    genai = pytest.importorskip("openvino_genai")
    return kept(genai.VLMPipeline(bundle.folder, "CPU", ATTENTION_BACKEND=request.param))


@pytest.fixture(scope="module")
def answers(tiny: Source) -> dict[Question, str]:
    """transformers' own greedy answers to all questions."""
    tokenizer = load_tokenizer(TINY / "tokenizer.json")

    model: Any = tiny.checkpoint.model

    def answer(question: Question) -> str:
        ids = torch.tensor([tiny.ids(question.prompt)])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.from_numpy(tiny.pixels(question)),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=list(tiny.checkpoint.template.stop),
            pad_token_id=0,
        )
        return str(tokenizer.decode(output[0, ids.shape[1] :].tolist(), skip_special_tokens=True))

    return {question: answer(question) for question in QUESTIONS}


def test_the_folder_answers_as_pytorch_does(
    bundle: Compiled, answers: dict[Question, str], pipeline: Any
) -> None:
    openvino = import_openvino()
    for question, expected in answers.items():
        # Already S x S: the pipeline's own resize and crop then change nothing.
        tensor = openvino.Tensor(bundle.source.tile(question)[None])
        answer = pipeline.generate(question.prompt, images=[tensor], max_new_tokens=TOKENS)
        assert answer.texts[0] == expected


@pytest.mark.parametrize(
    "prompt", [QUESTIONS[0].prompt, "What's in it?", "Répondez, 请 (1 + 2)…", "a\n b "]
)
def test_its_prompt_has_exactly_our_ids(bundle: Compiled, pipeline: Any, prompt: str) -> None:
    tokenizer = pipeline.get_tokenizer()
    visual = IMAGE_TAG * bundle.source.variant.tokens_per_tile
    # As the pipeline does it: llava/classes.cpp, normalize_prompt.
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{visual}\n{prompt}"}], add_generation_prompt=True
    )
    ids = tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
    assert ids == bundle.source.ids(prompt)


def test_our_engine_loads_the_same_files(bundle: Compiled) -> None:
    """Nothing is stored twice."""
    names = {path.name for path in bundle.folder.glob("*.xml")}
    assert names == {
        "openvino_language_model.xml",
        "openvino_text_embeddings_model.xml",
        "openvino_vision_embeddings_model.xml",
        "openvino_tokenizer.xml",
        "openvino_detokenizer.xml",
    }
    for module in ("vision_encoder", "embed_tokens", "decoder"):
        assert bundle.file(module).parent == bundle.folder


def test_a_prompt_that_is_not_chatml_is_refused(tiny: Source) -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    prompt = tiny.checkpoint.template
    assert "You are a helpful assistant." in chat_template(tokenizer, prompt)
    for change in ({"after_image": ()}, {"user_close": prompt.user_open}):
        with pytest.raises(ExportError, match=next(iter(change))):
            chat_template(tokenizer, replace(prompt, **change))


def test_only_the_spelling_of_the_image_token_changes(tiny: Source) -> None:
    source = (TINY / "tokenizer.json").read_text(encoding="utf-8")
    index = tiny.checkpoint.template.image_token_id
    tagged = Tokenizer.from_str(with_image_tag(source, index))
    assert tagged.token_to_id(IMAGE_TAG) == index
    before = Tokenizer.from_str(source).get_vocab(with_added_tokens=True)
    after = tagged.get_vocab(with_added_tokens=True)
    assert sorted(before.values()) == sorted(after.values())
    assert len(before.keys() - after.keys()) == 1
    with pytest.raises(ExportError, match="not a special token"):
        with_image_tag(source, 40)
    taken = json.loads(source)
    taken["added_tokens"][0]["content"] = IMAGE_TAG
    with pytest.raises(ExportError, match="spelled"):
        with_image_tag(json.dumps(taken), index)
