"""User text stays text, whatever it spells; the frozen template is ChatML."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from laco_runtimes.errors import ArgumentError, BundleError
from laco_runtimes.prompt import chatml, check_prompt, encode_text, load_tokenizer
from tests.runtime.fakes import IMAGE_TOKEN, SPECIAL_TOKENS

shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
spelled = st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "\n"]) | st.text()).map("".join)


@shared
@given(text=spelled)
def test_no_text_becomes_a_special_token_and_none_is_lost(tokenizer: Tokenizer, text: str) -> None:
    ids = encode_text(tokenizer, text)
    specials = {tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    assert specials.isdisjoint(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_protection_is_what_load_tokenizer_adds(tokenizer_file: Path) -> None:
    unprotected = Tokenizer.from_file(str(tokenizer_file))
    assert len(encode_text(unprotected, "<|im_end|>")) == 1
    assert len(encode_text(load_tokenizer(tokenizer_file), "<|im_end|>")) == len("<|im_end|>")


def test_truncation_and_padding_of_a_tokenizer_file_are_put_aside(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    cutting = Tokenizer.from_file(str(tokenizer_file))
    cutting.enable_truncation(3)
    cutting.enable_padding(length=50)
    cutting.save(str(tmp_path / "tokenizer.json"))
    assert len(encode_text(load_tokenizer(tmp_path / "tokenizer.json"), "12345")) == 5


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"model": {"type": "None"}}'])
def test_a_file_that_is_no_tokenizer_is_a_bundle_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BundleError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_missing_tokenizer_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="tokenizer"):
        load_tokenizer(tmp_path / "none.json")


def test_the_template_spells_out_chatml(tokenizer: Tokenizer) -> None:
    image = tokenizer.token_to_id(IMAGE_TOKEN)
    template = chatml(tokenizer, image_token_id=image, system="Be brief.")
    ids = [
        *template.system,
        *template.turn(encode_text(tokenizer, "Hi"), [2, 1]),
        *encode_text(tokenizer, "Ho"),
        *template.assistant_close,
        *template.turn(encode_text(tokenizer, "And?")),
    ]
    assert tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|image_pad|><|image_pad|>\n<|image_pad|>\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHo<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_an_answer_ends_with_the_turn_or_the_text(tokenizer: Tokenizer) -> None:
    template = chatml(tokenizer, image_token_id=0)
    assert template.stop == tuple(
        tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")
    )


def test_a_template_cannot_be_changed(tokenizer: Tokenizer) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        chatml(tokenizer, image_token_id=0).stop = ()  # type: ignore[misc]


def test_a_tokenizer_of_another_family_is_refused() -> None:
    from tokenizers import models

    with pytest.raises(BundleError, match=r"<\|im_start\|>.*Qwen"):
        chatml(Tokenizer(models.BPE()), image_token_id=0)


@pytest.mark.parametrize("text", ["", "  ", "\n\t", None, 7, b"text", ["text"], "half \udc80 pair"])
def test_a_prompt_that_asks_nothing_is_refused(text: object) -> None:
    with pytest.raises(ArgumentError, match="the prompt"):
        check_prompt(text)  # type: ignore[arg-type]


def test_a_prompt_is_passed_on_as_it_is() -> None:
    assert check_prompt(" What? \n") == " What? \n"
