"""`bench.json`: what a benchmark found, as a strict schema with the unit in every name."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from laco_deploy.benchmark.limits_schema import AffineFit, Limits
from laco_deploy.benchmark.schema_base import (
    STAGES,
    Count,
    Distribution,
    NotNegative,
    Ratio,
    Share,
    Spread,
    Stage,
    Strict,
)
from laco_deploy.benchmark.schema_machine import (
    BundleIdentity,
    Drift,
    ImageIdentity,
    Load,
    Machine,
    Quality,
    Settings,
    Sweep,
)

SCHEMA_VERSION: Final = 2
SCHEMA_ID: Final = "bench.schema.json"
"""Name of the file beside this one that holds `json_schema()`."""
BASELINE = "uncompressed"
"""The variant that speed-ups are relative to."""


class Speedup(Strict):
    """Baseline time over own time, paired: each ratio is of two requests of the same round."""

    vision_encode: Ratio
    prefill: Ratio
    ttft: Ratio
    request: Ratio
    """Of the longest answer."""


class Answer(Strict):
    """A request up to one length of its answer. All lengths are read off the same requests."""

    new_tokens: Count
    request_ms: Distribution
    """Start to the last of these tokens."""
    tokens_per_second: Distribution
    """`new_tokens` over the time of the whole request."""
    speedup_over_uncompressed: Ratio | None
    """Of `request_ms`; null where there is no uncompressed baseline."""


class EnergyReading(Strict):
    """What one meter counted while one variant answered again and again."""

    meter: str
    """`rapl:package-0`, `nvml:0 NVIDIA ...`, `ina3221:VDD_IN`."""
    covers: str
    """What is behind the meter, in words; always more than this process."""
    joules: NotNegative
    """Per request of the longest answer, what idles included."""
    counted: bool
    """Whether it is in `energy_joules`; a meter behind another one is not."""


class VariantResult(Strict):
    """One vision encoder with the shared language model."""

    name: str
    """Of this entry; in a sweep with what tells it from the others."""
    bundle: str
    """Name of its entry in `bundles`."""
    variant: str
    """Name of the variant in that bundle."""
    point: dict[str, str]
    """Options of a sweep that made it, `{"after_block": "4"}`; empty without a sweep."""
    latency_only: bool
    """True for a baseline that was never trained this way: right about time, not about words."""
    blocks: Count
    """L, blocks of the vision encoder."""
    after_block: Count | None
    """k, the block that the first merger follows; null where nothing is merged."""
    visual_tokens: Count
    prompt_tokens: Count
    """Visual tokens among them."""
    preprocess_ms: Distribution
    """Image file to pixel values, and prompt to token ids."""
    vision_encode_ms: Distribution
    """Pixel values to visual tokens."""
    embed_ms: Distribution
    """Token ids to embeddings, visual tokens put in their places."""
    prefill_ms: Distribution
    """Embeddings to the first token."""
    ttft_ms: Distribution
    """Time to first token: start to the first token."""
    tpot_ms: Distribution | None
    """Time per output token after the first, up to the longest answer; null where that has one."""
    request_ms: Distribution
    """Whole request, to the last token of the longest answer."""
    tokens_per_second: Distribution
    """New tokens over the time of the whole request, with the longest answer."""
    answers: Annotated[tuple[Answer, ...], Field(min_length=1)]
    """One entry per length of `settings.new_tokens`, ascending; the last one is the whole."""
    stage_sum_error: float
    """(Four stages and decoding, each timed by itself) / (whole request) - 1, median of the rounds;
    what is missing to 0 is time between the stages."""
    overhead_share: Share
    """Share of the request that is the benchmark's own work: its readings of the clock times what
    one costs here, and all that it does between the stages."""
    load_ms: NotNegative | None
    """Bundle folder to a ready engine, checks of its files included, in a fresh process."""
    cold_start_ms: NotNegative | None
    """Start of a fresh process to the first token: the interpreter, imports, load, request."""
    fresh_note: str | None
    """Why what a fresh process tells (`load_ms`, `cold_start_ms`, `peak_memory_bytes`) is null."""
    peak_memory_bytes: Count | None
    """Most host memory of a process that runs this variant alone, loading included; without the
    memory of a GPU."""
    peak_device_bytes: Count | None
    """Most memory of a GPU beyond what was in use before that process began."""
    peak_device_note: str | None
    """Why `peak_device_bytes` is null."""
    energy_joules: NotNegative | None
    """Per request of the longest answer: all meters that are `counted`."""
    energy: tuple[EnergyReading, ...]
    energy_note: str | None
    """Why `energy_joules` is null."""
    baseline: str | None
    """Name of the result that speed-ups are relative to; null where there is none."""
    speedup_over_uncompressed: Speedup | None
    """Null where there is no uncompressed baseline."""

    @model_validator(mode="after")
    def _consistent_result(self) -> Self:
        lengths = [answer.new_tokens for answer in self.answers]
        if lengths != sorted(set(lengths)):
            raise ValueError("answers are not in ascending order of new_tokens")
        whole = self.answers[-1]
        if (whole.request_ms, whole.tokens_per_second) != (self.request_ms, self.tokens_per_second):
            raise ValueError("the longest answer is not the whole request")
        for value, note, what in (
            (self.peak_memory_bytes, self.fresh_note, "peak_memory_bytes"),
            (self.peak_device_bytes, self.peak_device_note, "peak_device_bytes"),
            (self.energy_joules, self.energy_note, "energy_joules"),
        ):
            if value is None and note is None:
                raise ValueError(f"{what} is null and no note says why")
        return self


class BenchReport(Strict):
    """The whole of `bench.json`."""

    schema_version: Literal[2]
    created: str
    """UTC, ISO 8601."""
    bundles: Annotated[tuple[BundleIdentity, ...], Field(min_length=1)]
    machine: Machine
    settings: Settings
    results: Annotated[tuple[VariantResult, ...], Field(min_length=1)]
    """One entry per variant that could be measured; `uncompressed` is last."""
    failed: dict[str, str]
    """What is missing and why, by name: a variant that failed, `uncompressed` where no bundle has
    it, `energy`, `limits`. Everything else in the report stands."""
    quality: Quality
    limits: Limits | None
    """Rates of the machine, and every stage beside them; null where not asked for or `failed`."""
    fits: tuple[AffineFit, ...]
    """The affine law of a sweep over `after_block`; empty without one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [result.name for result in self.results]
        if len(set(names)) != len(names):
            raise ValueError("a variant is listed twice")
        known = [bundle.name for bundle in self.bundles]
        if len(set(known)) != len(known):
            raise ValueError("a bundle is listed twice")
        for result in self.results:
            if result.baseline is not None and result.baseline not in names:
                raise ValueError(f"{result.name!r} has a baseline that is not in results")
            if result.bundle not in known:
                raise ValueError(f"{result.name!r} is of bundle {result.bundle!r}, not in bundles")
            if tuple(one.new_tokens for one in result.answers) != self.settings.new_tokens:
                raise ValueError(f"{result.name!r} has other answers than settings.new_tokens")
            if any(len(runs) != self.settings.runs for runs in _all_runs(result)):
                raise ValueError(f"{result.name!r} does not hold settings.runs values everywhere")
        return self

    def result(self, name: str) -> VariantResult | None:
        """The entry of one variant, None where it was not measured."""
        return next((result for result in self.results if result.name == name), None)

    @property
    def bundle(self) -> BundleIdentity:
        """The first bundle, which is the only one but for a sweep."""
        return self.bundles[0]


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `bench.json`, as it is published in `bench.schema.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **BenchReport.model_json_schema(mode="serialization"),
    }


def _all_runs(result: VariantResult) -> list[tuple[float, ...]]:
    own = [value.runs for _, value in result if isinstance(value, Distribution)]
    answers = [
        value.runs
        for answer in result.answers
        for _, value in answer
        if isinstance(value, Distribution)
    ]
    return own + answers


__all__ = [
    "BASELINE",
    "SCHEMA_ID",
    "SCHEMA_VERSION",
    "STAGES",
    "AffineFit",
    "Answer",
    "BenchReport",
    "BundleIdentity",
    "Count",
    "Distribution",
    "Drift",
    "EnergyReading",
    "ImageIdentity",
    "Limits",
    "Load",
    "Machine",
    "NotNegative",
    "Quality",
    "Ratio",
    "Settings",
    "Share",
    "Speedup",
    "Spread",
    "Stage",
    "Strict",
    "Sweep",
    "VariantResult",
    "json_schema",
]
