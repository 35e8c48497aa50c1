"""Replies and bundles for people: a terminal, and the cells of a notebook.

What a model says, and what a bundle says about itself, comes from strangers: in a picture may stand
`<img src=...>`, for the model to read out. Shown here it is text and nothing else.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laco_runtimes.bundle import Bundle
    from laco_runtimes.manifest import Manifest
    from laco_runtimes.reply import Reply

ENDINGS = {"length": "cut off at its longest", "stopped": "stopped"}
"""Reasons for the end of an answer that a reader should see, by `Reply.stop_reason`."""

_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), "\N{REPLACEMENT CHARACTER}")
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]

_ACTIVE = re.compile(
    r"<(?=[A-Za-z/!?])"  # HTML, and links in angle brackets
    r"|&(?=#?\w+;)"  # so that `&lt;` is shown as it was said
    r"|\](?=[(\[:])"  # links and images, which a notebook would fetch
    r"|\$|\\(?=[(\[\\]|begin\{)"  # formulas: MathJax knows \href{javascript:...}
    r"|\\(?=[<\]&$])"  # it would take the `&` of what is put in their place for text
)
_SINGLE_NEWLINE = re.compile(r"(?<!\n)\n(?!\n)")


def printable(text: str) -> str:
    """Text for a terminal, which would obey escape sequences in it."""
    return text.translate(_CONTROLS)


def inert_markdown(text: str) -> str:
    """Text for a Markdown cell: lists, tables, emphasis and code work, all that loads or runs not.

    Line breaks stay.
    """
    plain = _ACTIVE.sub(lambda found: f"&#{ord(found[0])};", printable(text))
    return _SINGLE_NEWLINE.sub("  \n", plain)


def inert_html(text: str) -> str:
    """Text for an HTML cell."""
    escaped = html.escape(printable(text))
    # A formula must begin and end in one text node.
    return re.sub(r"[$\\]", lambda found: f"<span>{found[0]}</span>", escaped)


def reply_line(reply: Reply) -> str:
    """Times and counts of a reply in one line."""
    times = reply.timings
    image_ms = times.preprocess_ms + times.vision_encode_ms
    parts = [
        f"image {image_ms:.0f} ms",
        f"{reply.visual_tokens} visual of {reply.prompt_tokens} prompt tokens",
        f"first token after {times.ttft_ms:.0f} ms",
        f"{times.tokens_per_second:.1f} tokens/s in all",
        f"{reply.new_tokens} new tokens",
    ]
    if reply.cached_tokens:
        parts[1] += f" ({reply.cached_tokens} kept from before)"
    if times.tpot_ms is not None:
        parts.insert(3, f"{times.tpot_ms:.1f} ms per token after it")
    if reply.stop_reason in ENDINGS:
        parts.append(ENDINGS[reply.stop_reason])
    return ", ".join(parts)


def reply_markdown(reply: Reply) -> str:
    """A reply as a Markdown cell: what was said, and its line below."""
    return f"{inert_markdown(reply.text.strip())}\n\n*{reply_line(reply)}*"


def bundle_rows(manifest: Manifest) -> dict[str, str]:
    """What a bundle holds, by names for people."""
    vision, language, parity = manifest.vision, manifest.language, manifest.parity
    side = vision.image_size // vision.patch_size
    return {
        "engine": f"{manifest.target}, "
        + ", ".join(f"{name} {value}" for name, value in manifest.precision.items()),
        "vision encoder": f"{vision.model_type}, {vision.blocks} blocks x {vision.width}, "
        f"{vision.image_size} px, {side}x{side} patches of {vision.patch_size} px",
        "language model": f"{language.model_type}, {language.layers} layers x "
        f"{language.hidden_size}, {language.vocab_size} tokens, context {language.max_positions}",
        **{
            f"variant {variant.name}": (
                manifest.said_tokens(variant)
                + "".join(
                    f", {m.kind} {m.ratio}x{m.ratio} after block {m.after_block}"
                    for m in variant.mergers
                )
                + (" (for latency only)" if variant.latency_only else "")
            )
            for variant in manifest.variants
        },
        "parity with PyTorch": f"unverified: {manifest.unverified}"
        if parity is None
        else parity.summary,
        "made by": manifest.created_by
        + ", "
        + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "size": f"{sum(entry.size for entry in manifest.files) / 1e6:.1f} MB "
        f"in {len(manifest.files)} files",
    }


def bundle_html(bundle: Bundle) -> str:
    """A bundle as an HTML cell: a table of what it holds."""
    rows = "".join(
        f'<tr><th style="text-align:left">{inert_html(name)}</th>'
        f'<td style="text-align:left">{inert_html(value)}</td></tr>'
        for name, value in bundle_rows(bundle.manifest).items()
    )
    return f"<table><caption>{inert_html(str(bundle.root))}</caption>{rows}</table>"


__all__ = [
    "ENDINGS",
    "bundle_html",
    "bundle_rows",
    "inert_html",
    "inert_markdown",
    "printable",
    "reply_line",
    "reply_markdown",
]
