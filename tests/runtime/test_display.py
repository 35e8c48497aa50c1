"""Replies and bundles in a notebook and on a terminal: readable, and nothing in them runs."""

from __future__ import annotations

import html
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from laco_runtimes.bundle import open_bundle, seal_bundle
from laco_runtimes.display import (
    inert_html,
    inert_markdown,
    printable,
    reply_line,
)
from laco_runtimes.manifest import BundleFacts
from laco_runtimes.reply import Reply, StopReason, Timings


def make_reply(
    text: str = "A cat.", *, stop_reason: StopReason = "stop", cached: int = 0, tokens: int = 3
) -> Reply:
    return Reply(
        text=text,
        tokens=(1,) * tokens,
        stop_reason=stop_reason,
        prompt_tokens=50,
        visual_tokens=36,
        cached_tokens=cached,
        timings=Timings(
            preprocess_ms=5.0,
            vision_encode_ms=35.0,
            embed_ms=1.0,
            prefill_ms=44.0,
            ttft_ms=85.0,
            tpot_ms=9.5 if tokens > 1 else None,
            request_ms=104.0,
            tokens_per_second=28.85,
        ),
    )


def test_the_line_of_a_reply_has_image_tokens_first_token_and_speed() -> None:
    assert reply_line(make_reply()) == (
        "image 40 ms, 36 visual of 50 prompt tokens, first token after 85 ms, "
        "9.5 ms per token after it, 28.9 tokens/s in all, 3 new tokens"
    )


def test_the_line_says_what_was_kept_and_why_an_answer_is_cut() -> None:
    line = reply_line(make_reply(stop_reason="length", cached=44, tokens=1))
    assert "36 visual of 50 prompt tokens (44 kept from before)" in line
    assert line.endswith("1 new tokens, cut off at its longest")
    assert "per token" not in line
    assert reply_line(make_reply(stop_reason="stopped")).endswith(", stopped")


def test_a_terminal_gets_text_and_line_breaks_alone() -> None:
    assert printable("a\tb\nc ü 猫") == "a\tb\nc ü 猫"
    assert not set(printable("\x1b[2J\x07\x08\r\x9b\x7f")) & set("\x1b\x07\x08\r\x9b\x7f")


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</div><!-- -->",
        "<?php ?>",
        "<http://192.0.2.1/>",
        "\\<script>alert(1)</script>",
        "![x](http://192.0.2.1/a.png)",
        "[x](javascript:alert(1))",
        "[x][y]\n\n[y]: http://192.0.2.1/",
        "![x]\n\n[x]: http://192.0.2.1/",
    ],
)
def test_nothing_in_a_markdown_cell_is_loaded_or_run(text: str) -> None:
    shown = inert_markdown(text)
    for active in ("<script", "<img", "</div", "<!--", "<?php", "<http", "](", "][", "]:"):
        assert active not in shown
    # A reader sees what was said: no backslash takes an entity for text.
    assert "\\&" not in shown
    assert html.unescape(shown).replace("  \n", "\n") == text


def test_formulas_are_not_typeset() -> None:
    shown = inert_markdown(r"$\href{javascript:alert(1)}{x}$ \\(x\\) \begin{x}")
    assert "$" not in shown
    assert r"\(" not in shown
    assert r"\begin" not in shown


def test_markdown_of_a_model_stays_markdown() -> None:
    text = (
        "**Total**: 3 < 5 & 7 > 2\n\n| a | b |\n|---|---|\n| `x[0]` | 1. |\n\n```\nif a < b:\n```"
    )
    assert inert_markdown(text).replace("  \n", "\n") == text


def test_an_entity_is_shown_as_it_was_said() -> None:
    assert inert_markdown("&lt;b&gt; AT&T") == "&#38;lt;b&#38;gt; AT&T"


def test_lines_of_an_answer_stay_lines() -> None:
    assert inert_markdown("one\ntwo\n\nthree") == "one  \ntwo\n\nthree"


def test_a_reply_in_a_notebook_is_its_text_and_its_line() -> None:
    reply = make_reply("A <b>cat</b>.")
    shown = reply._repr_markdown_()
    assert shown.endswith(f"*{reply.summary()}*")
    assert shown.startswith("A &#60;b>cat&#60;/b>.\n\n*image 40 ms, 36 visual")


def test_html_of_a_stranger_is_text() -> None:
    text = "<b onclick='x'>&\"\x1b $x$ \\(x\\)"
    shown = inert_html(text)
    root = ElementTree.fromstring(f"<p>{shown}</p>")
    assert {child.tag for child in root} == {"span"}
    assert "".join(root.itertext()) == printable(text)
    # No text node holds a whole formula.
    assert all(part.count("$") <= 1 for part in root.itertext())


def test_a_bundle_in_a_notebook_is_a_table_of_what_it_holds(
    unsealed: Path, facts: BundleFacts
) -> None:
    hostile = facts.model_copy(update={"created_by": "<script>alert(1)</script>"})
    seal_bundle(unsealed, hostile)
    shown = open_bundle(unsealed)._repr_html_()
    rows = {row[0].text: "".join(row[1].itertext()) for row in ElementTree.fromstring(shown)[1:]}
    assert rows["engine"].startswith("fake, ")
    assert rows["variant laco"] == "4 visual tokens per image, laco 2x2 after block 1"
    assert "<script>alert(1)</script>" in rows["made by"]
    assert "<script>" not in shown
