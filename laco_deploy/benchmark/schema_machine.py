"""The circumstances in `bench.json`: which bundles, where, with what settings, how undisturbed."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from laco_deploy.benchmark.schema_base import Count, NotNegative, Share, Strict
from laco_runtimes.manifest import Sha256


class BundleIdentity(Strict):
    """Which bundle was measured."""

    name: str
    """Name of its folder; in a sweep, of its point."""
    manifest_sha256: Sha256
    """Of `laco.json`, which holds the hash of every other file."""
    target: str
    precision: dict[str, str]


class Machine(Strict):
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


class ImageIdentity(Strict):
    """The picture every request brings, as an encoded file in memory."""

    name: str | None
    """File name; null for the synthetic picture."""
    width: Count
    height: Count
    size_bytes: Count
    sha256: Sha256


class Sweep(Strict):
    """The checkpoint that the bundles were exported from, and what was varied."""

    checkpoint: str
    """Name of its folder."""
    checkpoint_sha256: Sha256
    target: str
    axes: dict[str, tuple[str, ...]]
    """Values of each option, as they were given: `{"after_block": ["1", "2"]}`."""
    options: dict[str, str]
    """Options of the export that all points share."""


class Settings(Strict):
    """What was asked for; `laco bench --repeat bench.json` asks for the same again."""

    engine: str
    device: str
    """The device in force, in the engine's own words."""
    device_requested: str
    device_reason: str
    threads: Count | None
    """CPU threads per inference; null: the engine chose."""
    image: ImageIdentity
    prompt: str
    new_tokens: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Lengths of answers that are told, ascending. Every request runs to the last one: stop tokens
    do not end it."""
    new_tokens_requested: Annotated[tuple[Count, ...], Field(min_length=1)]
    """The same before they were cut to what fits in the context."""
    runs: Count
    """Rounds; each holds one request per variant."""
    warmup: Annotated[int, Field(ge=0)]
    """Requests per variant before the first round, not counted."""
    seed: int
    """Of the order of variants in the rounds, and of the confidence intervals."""
    fresh: bool
    """Whether each variant was started in a process of its own (memory, load, cold start)."""
    energy: bool
    """Whether energy was asked for."""
    limits: bool
    """Whether the machine's own limits were measured."""
    sweep: Sweep | None = None

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for lengths in (self.new_tokens, self.new_tokens_requested):
            if list(lengths) != sorted(set(lengths)):
                raise ValueError("new_tokens are not in ascending order")
        return self


class Drift(Strict):
    """How the same request grows slower (or faster) while the benchmark runs: a straight line
    through the requests of one variant over the rounds (Theil and Sen)."""

    variant: str
    """The baseline where there is one."""
    percent_per_round: float
    """Slope, in percent of the median request."""
    ci95_low: float
    ci95_high: float
    percent_in_all: float
    """From the first round to the last, along the line."""
    detected: bool
    """The interval does not hold 0, and the drift in all is more than 2 %."""


class Load(Strict):
    """Who used the processor while the requests were timed."""

    wall_seconds: NotNegative
    own_cpu_seconds: NotNegative
    """Of this process, all threads."""
    others_share: Share | None
    """Share of the machine's processor time that went to other processes; null where the system
    does not tell (it is Linux that does)."""
    load_average_start: NotNegative | None
    load_average_end: NotNegative | None
    involuntary_switches: Annotated[int, Field(ge=0)] | None
    """Times that another process took the core away. Null on Windows."""
    detected: bool
    """Others took more than 5 %."""


class Quality(Strict):
    """What disturbed the measurement, as far as it can be seen from here."""

    drift: Drift | None
    """Null with fewer than 4 rounds."""
    load: Load
    cpu_mhz_start: NotNegative | None
    """Mean of the usable cores while they work; null where the system does not tell."""
    cpu_mhz_end: NotNegative | None
    clock_read_ns: NotNegative
    """Cost of one reading of the clock."""
    notes: tuple[str, ...]
    """The same in sentences, and all else to know; empty where nothing was out of order."""


__all__ = [
    "BundleIdentity",
    "Drift",
    "ImageIdentity",
    "Load",
    "Machine",
    "Quality",
    "Settings",
    "Sweep",
]
