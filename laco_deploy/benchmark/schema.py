"""`bench.json`: what a benchmark found, as a strict schema with the unit in every name."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from laco_runtimes.manifest import Sha256

SCHEMA_VERSION = 1
BASELINE = "uncompressed"
"""The variant that speed-ups are relative to."""

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Stage = Literal["preprocess", "vision_encode", "embed", "prefill"]
STAGES: tuple[Stage, ...] = ("preprocess", "vision_encode", "embed", "prefill")
"""What happens before the first token, in order; each has a `<stage>_ms`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Spread(_Strict):
    """Percentiles, with linear interpolation between the runs."""

    median: NotNegative
    p10: NotNegative
    p90: NotNegative

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.p10 <= self.median <= self.p90:
            raise ValueError("p10, median and p90 are out of order")
        return self


class Distribution(Spread):
    """A quantity over all runs."""

    runs: Annotated[tuple[NotNegative, ...], Field(min_length=1)]
    """One value per round, in the order measured."""


class Speedup(_Strict):
    """Baseline time over own time, paired: each ratio is of two requests of the same round."""

    vision_encode: Spread
    prefill: Spread
    ttft: Spread
    request: Spread


class VariantResult(_Strict):
    """One vision encoder with the shared language model."""

    name: str
    latency_only: bool
    """True for a baseline that was never trained this way: right about time, not about words."""
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
    """Time to first token, the four stages above."""
    tpot_ms: Distribution | None
    """Time per output token after the first; null where one token was asked for."""
    request_ms: Distribution
    """Whole request, to the last token."""
    tokens_per_second: Distribution
    """New tokens over the time of the whole request."""
    peak_memory_bytes: Count | None
    """Most host memory of a process that runs this variant alone, loading included; without the
    memory of a GPU. Null: see `peak_memory_note`."""
    peak_memory_note: str | None
    """Why `peak_memory_bytes` is null."""
    speedup_over_uncompressed: Speedup | None
    """Null where the bundle has no uncompressed baseline."""


class BundleIdentity(_Strict):
    """Which bundle was measured."""

    name: str
    """Name of its folder."""
    manifest_sha256: Sha256
    """Of `laco.json`, which holds the hash of every other file."""
    target: str
    precision: dict[str, str]


class Machine(_Strict):
    """Where it was measured."""

    cpu_model: str
    usable_cores: Count
    """Logical cores this process may run on."""
    memory_bytes: Count | None
    os: str
    architecture: str
    python: str
    load_average_1min: NotNegative | None
    """Processes that wanted a core before the start; near 0 on an idle machine. Null on Windows."""
    packages: dict[str, str]
    """Versions of this package and of the engine's."""


class ImageIdentity(_Strict):
    """The picture every request brings, as an encoded file in memory."""

    name: str | None
    """File name; null for the synthetic picture."""
    width: Count
    height: Count
    size_bytes: Count


class Settings(_Strict):
    """What was asked for."""

    engine: str
    device: str
    """The device in force, in the engine's own words."""
    device_requested: str
    device_reason: str
    threads: Count | None
    """CPU threads per inference; null: the engine chose."""
    image: ImageIdentity
    prompt: str
    new_tokens: Count
    """Exactly as many in every request: stop tokens do not end it."""
    runs: Count
    """Rounds; each holds one request per variant."""
    warmup: Annotated[int, Field(ge=0)]
    """Requests per variant before the first round, not counted."""
    seed: int
    """Of the order of variants in the rounds."""


class BenchReport(_Strict):
    """The whole of `bench.json`."""

    schema_version: Literal[1]
    created: str
    """UTC, ISO 8601."""
    bundle: BundleIdentity
    machine: Machine
    settings: Settings
    results: Annotated[tuple[VariantResult, ...], Field(min_length=1)]
    """One entry per variant, `laco` first and `uncompressed` last."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [result.name for result in self.results]
        if len(set(names)) != len(names):
            raise ValueError("a variant is listed twice")
        for result in self.results:
            found = [value for _, value in result if isinstance(value, Distribution)]
            if any(len(quantity.runs) != self.settings.runs for quantity in found):
                raise ValueError(f"{result.name!r} does not hold settings.runs values everywhere")
        return self

    def result(self, name: str) -> VariantResult | None:
        """The entry of one variant, None where it was not measured."""
        return next((result for result in self.results if result.name == name), None)


__all__ = [
    "BASELINE",
    "SCHEMA_VERSION",
    "STAGES",
    "BenchReport",
    "BundleIdentity",
    "Distribution",
    "ImageIdentity",
    "Machine",
    "Settings",
    "Speedup",
    "Spread",
    "Stage",
    "VariantResult",
]
