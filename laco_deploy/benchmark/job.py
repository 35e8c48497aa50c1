"""What a benchmark is asked to do, and what takes part in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from laco_deploy.benchmark.schema import BASELINE
from laco_runtimes.bundle import Bundle
from laco_runtimes.errors import ArgumentError
from laco_runtimes.manifest import Variant
from laco_runtimes.prompt import check_prompt

NEW_TOKENS = (6, 64, 256)
"""Lengths of answers: the paper's throughput is of answers of about 6 tokens."""

Progress = Callable[[str, int, int], None]
"""Told (what is under way, steps done, steps in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What to measure, of whatever takes part.

    Raises:
        ArgumentError: a number out of range, or an empty prompt.
    """

    image: Path | None = None
    """Image file; None for a synthetic picture."""
    prompt: str
    new_tokens: tuple[int, ...] = NEW_TOKENS
    """Lengths of answers, cut to what fits in the context; stop tokens do not end them."""
    runs: int
    """Rounds of one request per variant."""
    warmup: int
    """Requests per variant before the first round."""
    device: str = "auto"
    threads: int | None = None
    """CPU threads per inference; None leaves it to the engine."""
    memory: bool = True
    """Whether to start each variant in a process of its own, for memory, load and cold start."""
    energy: bool = True
    """Whether to find the energy of a request, where the machine has a meter."""
    limits: bool = True
    """Whether to measure the machine's matrix rate and memory bandwidth."""
    seed: int = 0
    """Of the order of variants and of the confidence intervals."""
    max_seconds: float | None = None
    """Time for loading, warm-up and rounds; variants and rounds that do not fit are left out."""

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if not self.new_tokens:
            raise ArgumentError("no length of an answer is given. Give --new-tokens 64.")
        for name, value, least in (
            ("new tokens", min(self.new_tokens), 1),
            ("runs", self.runs, 1),
            ("warmup", self.warmup, 0),
            ("threads", 1 if self.threads is None else self.threads, 1),
        ):
            if value < least:
                raise ArgumentError(f"{name} cannot be {value}. Give {least} or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchJob(BenchPlan):
    """A plan for all variants of one bundle."""

    engine: Path
    """Bundle folder."""
    variants: tuple[str, ...] | None = None
    """Names of variants that take part; None for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """One variant of one bundle, as it takes part and is called in the report."""

    name: str
    """Distinct among all that take part."""
    bundle: Bundle
    bundle_name: str
    """Of the bundle in the report, distinct among bundles."""
    variant: Variant
    point: Mapping[str, str] = field(default_factory=dict)
    """Options of a sweep that tell its bundle from the others."""
    baseline: str | None = None
    """Name of the entrant that its speed-ups are relative to."""


def entrants_of(bundle: Bundle, variants: tuple[str, ...] | None = None) -> list[Entrant]:
    """All variants of one bundle, or the named ones, `uncompressed` last.

    Raises:
        ArgumentError: a name that the bundle does not have.
    """
    found = bundle.manifest.variants
    if variants is not None:
        found = tuple(bundle.variant(name) for name in variants)
    has_baseline = any(variant.name == BASELINE for variant in found)
    return [
        Entrant(
            name=variant.name,
            bundle=bundle,
            bundle_name=bundle.root.name.encode(errors="replace").decode(),
            variant=variant,
            baseline=BASELINE if has_baseline else None,
        )
        for variant in sorted(found, key=lambda one: one.name == BASELINE)
    ]


__all__ = ["NEW_TOKENS", "BenchJob", "BenchPlan", "Entrant", "Progress", "entrants_of"]
