"""Does an engine still say on this machine what the exported graphs said? Asked of two images.

A bundle carries the answers of its fp32 graphs in `selftest.npz`, so that an engine that could not
run where it was exported (a TensorRT plan), or that has another driver under it now, can be held
against them without PyTorch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.engines.base import Floats, LoadedEngine
from laco_runtimes.errors import BundleError
from laco_runtimes.manifest import BundleFacts
from laco_runtimes.newline import read_newline
from laco_runtimes.tiling import Size
from laco_runtimes.visual import arrange_tiles, pixel_values

SELFTEST_NAME = "selftest.npz"

LIMITS = ("cosine_min", "kl_mean", "top1")
"""Limits in the file, in this order: least cosine of a visual token, largest mean divergence, least
share of positions with the same likeliest token."""

_KEYS = {
    *("squares", "ids", "features", "tokens", "top_ids", "top_logits"),
    *("log_sums", "limits", "tie_margin"),
}


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What was found, and what was asked for."""

    images: int
    cosine_min: float
    """Least cosine of a visual token with the fp32 graph's."""
    kl_mean: float
    """Mean KL divergence of the next token from the fp32 graph's, in nats. From the likeliest
    tokens and the sum of all others, so a lower bound."""
    top1: float
    """Share of positions with the same likeliest token, ties counted as such."""
    limits: tuple[float, float, float]
    """For the three, in this order."""

    @property
    def passed(self) -> bool:
        """Whether every figure is as asked; one that is not a number never is."""
        cosine_min, kl_mean, top1 = self.limits
        return self.cosine_min >= cosine_min and self.kl_mean <= kl_mean and self.top1 >= top1

    def __str__(self) -> str:
        cosine_min, kl_mean, top1 = self.limits
        return (
            f"on {self.images} images the cosine of a visual token is at least "
            f"{self.cosine_min:.6f} (asked: {cosine_min:g}), the mean divergence of the next token "
            f"{self.kl_mean:.1e} (asked: at most {kl_mean:g}), and {self.top1:.1%} of the "
            f"likeliest tokens are the same (asked: {top1:.2%})"
        )


def has_selftest(root: Path) -> bool:
    """Whether a bundle has answers to compare with; one exported without parity images has none."""
    return (root / SELFTEST_NAME).is_file()


def run_selftest(engine: LoadedEngine, root: Path, facts: BundleFacts) -> SelfTest:
    """Ask an engine what the exported graphs were asked. Its KV cache is empty afterwards.

    Args:
        engine: runs the variant `laco` of the bundle.
        root: the bundle, verified.
        facts: its manifest.

    Raises:
        BundleError: the bundle has no such file, or it does not fit the manifest.
        EngineError: the engine failed.
    """
    # That module imports the engines, one of which imports this one.
    from laco_runtimes.generation import splice

    stored = _read(root / SELFTEST_NAME)
    cosines, divergences, agreed = [], [], []
    newline, layout = read_newline(root, facts), facts.token_layout(facts.variants[0])
    for index, (rows, size) in enumerate(_images(stored)):
        ids = [int(one) for one in stored["ids"][index] if one >= 0]
        features = engine.vision.encode(pixel_values(stored["squares"][rows], facts.preprocessing))
        cosines.append(_least_cosine(features, stored["features"][rows]))
        visual = arrange_tiles(features, size, layout, newline)
        embeds = splice(engine.language.embed(ids), ids, visual, facts.prompt.image_token_id)
        engine.language.rewind(0)
        logits = engine.language.prefill(embeds)
        tokens = [int(one) for one in stored["tokens"][index] if one >= 0]
        for place, token in enumerate(tokens):
            top_ids, top_logits = (
                stored["top_ids"][index, place],
                stored["top_logits"][index, place],
            )
            divergences.append(
                _divergence(logits, top_ids, top_logits, float(stored["log_sums"][index, place]))
            )
            tied = top_ids[top_logits > top_logits.max() - stored["tie_margin"][0]]
            agreed.append(int(logits.argmax()) in {token, *tied.tolist()})
            if place + 1 < len(tokens):
                logits = engine.language.step(token)
    engine.language.rewind(0)
    cosine_min, kl_mean, top1 = (float(one) for one in stored["limits"])
    return SelfTest(
        images=len(cosines),
        cosine_min=min(cosines),
        kl_mean=float(np.mean(divergences)),
        top1=float(np.mean(agreed)),
        limits=(cosine_min, kl_mean, top1),
    )


def _images(stored: dict[str, NDArray]) -> Iterator[tuple[slice, Size]]:  # type: ignore[type-arg]
    """Rows of the tiles of each image, and its height and width."""
    # Format 2 had one tile for each image, and no need of its size.
    tiles = stored.get("tiles", np.ones(len(stored["squares"]), np.int64))
    sizes = stored.get("sizes", np.ones((len(tiles), 2), np.int64))
    start = 0
    for count, (height, width) in zip(tiles.tolist(), sizes.tolist(), strict=True):
        yield slice(start, start + count), (height, width)
        start += count


def _read(path: Path) -> dict[str, NDArray]:  # type: ignore[type-arg]
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise BundleError(
            f"the bundle holds no {SELFTEST_NAME}: it was exported without images to compare on. "
            "Export it again without --parity-images 0."
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"'{path}' cannot be read. Export the model again.") from error
    if missing := sorted(_KEYS - stored.keys()):
        raise BundleError(f"'{path}' has no {missing[0]!r}. Export the model again.")
    return stored


def _least_cosine(found: Floats, expected: Floats) -> float:
    ours, theirs = found.astype(np.float64), expected.astype(np.float64)  # [N', D]
    if ours.shape != theirs.shape:
        return float("nan")
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return float(((ours * theirs).sum(-1) / np.maximum(lengths, np.finfo(np.float64).tiny)).min())


def _divergence(
    logits: Floats, top_ids: NDArray[np.int64], top_logits: Floats, log_sum: float
) -> float:
    """KL(stored || found) over the stored tokens and, as one, all others."""
    ours = logits.astype(np.float64)
    ours = ours - (ours.max() + np.log(np.exp(ours - ours.max()).sum()))
    theirs = top_logits.astype(np.float64) - log_sum
    total = float((np.exp(theirs) * (theirs - ours[top_ids])).sum())
    rest = 1.0 - float(np.exp(theirs).sum())
    our_rest = 1.0 - float(np.exp(ours[top_ids]).sum())
    if rest > 1e-9 and our_rest > 1e-9:
        total += rest * float(np.log(rest / our_rest))
    return total


__all__ = ["LIMITS", "SELFTEST_NAME", "SelfTest", "has_selftest", "run_selftest"]
