"""Reports from made-up times, of whatever shape a test wants; nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from laco_deploy.benchmark.fit import Measured, fit_affine
from laco_deploy.benchmark.limits_schema import (
    LimitedStage,
    Limits,
    MachineRates,
    StageLimits,
    VariantLimits,
)
from laco_deploy.benchmark.schema import (
    Answer,
    BenchReport,
    BundleIdentity,
    EnergyReading,
    ImageIdentity,
    Load,
    Machine,
    Quality,
    Settings,
    Speedup,
    Sweep,
    VariantResult,
)
from laco_deploy.benchmark.statistics import distribution, drift, paired_ratio

BLOCKS = 24
LENGTHS = (6, 64, 256)
HASH = "ab" * 32


@dataclass(frozen=True, kw_only=True)
class Made:
    """One entry: medians in ms around which its rounds lie."""

    name: str
    variant: str
    vision_ms: float
    prefill_ms: float
    visual_tokens: int = 256
    after_block: int | None = 6
    point: dict[str, str] = field(default_factory=dict)
    baseline: str | None = "uncompressed"
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields of the result to replace."""


THREE = (
    Made(name="laco", variant="laco", vision_ms=100, prefill_ms=60),
    Made(
        name="external",
        variant="external",
        vision_ms=220,
        prefill_ms=60,
        after_block=BLOCKS,
    ),
    Made(
        name="uncompressed",
        variant="uncompressed",
        vision_ms=215,
        prefill_ms=240,
        after_block=None,
        visual_tokens=1024,
    ),
)


def sweep_of(depths: Sequence[int], precisions: Sequence[str]) -> tuple[Made, ...]:
    """What a sweep over both gives: LaCo at each depth and the baseline, per precision."""
    found = []
    for precision, speed in zip(precisions, (1.0, 0.6), strict=False):
        baseline = f"uncompressed precision={precision}"
        for k in depths:
            point = {"after_block": str(k), "precision": precision}
            found.append(
                Made(
                    name=f"laco after_block={k} precision={precision}",
                    variant="laco",
                    vision_ms=speed * (20 + 180 * k / BLOCKS),
                    prefill_ms=speed * 60,
                    after_block=k,
                    point=point,
                    baseline=baseline,
                )
            )
        found.append(
            Made(
                name=baseline,
                variant="uncompressed",
                vision_ms=speed * 200,
                prefill_ms=speed * 240,
                after_block=None,
                visual_tokens=1024,
                point={"precision": precision},
                baseline=baseline,
            )
        )
    return tuple(found)


def report_of(
    made: Sequence[Made] = THREE,
    *,
    runs: int = 10,
    seed: int = 0,
    noise: float = 0.02,
    slower: float = 1.0,
    lengths: tuple[int, ...] = LENGTHS,
    prompt: str = "Describe the image.",
    energy: bool = True,
    limits: bool = True,
    **replaced: Any,
) -> BenchReport:
    """A whole and consistent report.

    Args:
        noise: relative standard deviation of every time.
        slower: factor on the vision encoder of all entries but the baselines.
        replaced: fields of the report.
    """
    random = np.random.default_rng(seed)
    times = {one.name: _times(one, runs, random, noise, slower, lengths) for one in made}
    sweep = any(one.point for one in made)
    results = [_result(one, times, lengths, energy) for one in made]
    fields: dict[str, Any] = {
        "schema_version": 2,
        "created": "2026-11-21T20:00:00+00:00",
        "bundles": (
            BundleIdentity(
                name="engine",
                manifest_sha256=HASH,
                target="openvino",
                precision={"vision_encoder": "fp32", "decoder": "fp32"},
            ),
        ),
        "machine": Machine(
            cpu_model="Some CPU @ 3 GHz",
            usable_cores=2,
            memory_bytes=8_000_000_000,
            os="Linux",
            architecture="x86_64",
            python="3.12.1",
            load_average_1min=0.1,
            packages={"laco-deploy": "0.1.0", "openvino": "2026.2"},
        ),
        "settings": Settings(
            engine="openvino",
            device="CPU",
            device_requested="auto",
            device_reason="the only one",
            threads=None,
            image=ImageIdentity(name=None, width=640, height=480, size_bytes=90_000, sha256=HASH),
            prompt=prompt,
            new_tokens=lengths,
            new_tokens_requested=lengths,
            runs=runs,
            warmup=2,
            seed=0,
            fresh=True,
            energy=energy,
            limits=limits,
            sweep=Sweep(
                checkpoint="ckpt",
                checkpoint_sha256=HASH,
                target="openvino",
                axes={"after_block": ("2", "6", "12")},
                options={},
            )
            if sweep
            else None,
        ),
        "results": tuple(results),
        "failed": {},
        "quality": Quality(
            drift=drift(made[-1].name, times[made[-1].name]["request_ms"]),
            load=Load(
                wall_seconds=60,
                own_cpu_seconds=110,
                others_share=0.01,
                load_average_start=0.1,
                load_average_end=1.9,
                involuntary_switches=12,
                detected=False,
            ),
            cpu_mhz_start=2900,
            cpu_mhz_end=2850,
            clock_read_ns=40,
            notes=(),
        ),
        "limits": _limits(results) if limits else None,
        "fits": _fits(made, times) if sweep else (),
    }
    return BenchReport(**(fields | replaced))


def _times(
    one: Made,
    runs: int,
    random: np.random.Generator,
    noise: float,
    slower: float,
    lengths: tuple[int, ...],
) -> dict[str, list[float]]:
    def around(median: float) -> list[float]:
        return [float(value) for value in median * np.exp(random.normal(0, noise, runs))]

    factor = 1.0 if one.variant == "uncompressed" else slower
    found = {
        "preprocess_ms": around(8),
        "vision_encode_ms": around(one.vision_ms * factor),
        "embed_ms": around(1),
        "prefill_ms": around(one.prefill_ms),
        "tpot_ms": around(12 + one.visual_tokens / 500),
    }
    stages = [found[f"{name}_ms"] for name in ("preprocess", "vision_encode", "embed", "prefill")]
    found["ttft_ms"] = [sum(values) for values in zip(*stages, strict=True)]
    for length in lengths:
        found[str(length)] = [
            first + (length - 1) * each
            for first, each in zip(found["ttft_ms"], found["tpot_ms"], strict=True)
        ]
    found["request_ms"] = found[str(lengths[-1])]
    return found


def _result(
    one: Made, times: dict[str, dict[str, list[float]]], lengths: tuple[int, ...], energy: bool
) -> VariantResult:
    own = times[one.name]
    base = None if one.baseline is None else times.get(one.baseline)

    def ratio(name: str) -> Any:
        return None if base is None else paired_ratio(base[name], own[name], 0)

    answers = [
        Answer(
            new_tokens=length,
            request_ms=distribution(own[str(length)]),
            tokens_per_second=distribution([1000 * length / value for value in own[str(length)]]),
            speedup_over_uncompressed=ratio(str(length)),
        )
        for length in lengths
    ]
    readings = [
        EnergyReading(meter=meter, covers="all of it", joules=joules, counted=counted)
        for meter, joules, counted in (
            ("rapl:package-0", 20 + one.vision_ms / 10, True),
            ("rapl:dram", 3.0, True),
            ("rapl:core", 12.0, False),
        )
    ]
    fields: dict[str, Any] = {
        "name": one.name,
        "bundle": "engine",
        "variant": one.variant,
        "point": one.point,
        "latency_only": one.variant != "laco",
        "blocks": BLOCKS,
        "after_block": one.after_block,
        "visual_tokens": one.visual_tokens,
        "prompt_tokens": one.visual_tokens + 30,
        **{name: distribution(own[name]) for name in own if name.endswith("_ms")},
        "tokens_per_second": answers[-1].tokens_per_second,
        "answers": tuple(answers),
        "stage_sum_error": -0.001,
        "overhead_share": 0.0001,
        "load_ms": 900.0,
        "cold_start_ms": 2400.0,
        "fresh_note": None,
        "peak_memory_bytes": 1_500_000_000 + 300_000 * one.visual_tokens,
        "peak_device_bytes": None,
        "peak_device_note": "there is no GPU in use",
        "energy_joules": sum(r.joules for r in readings if r.counted) if energy else None,
        "energy": tuple(readings) if energy else (),
        "energy_note": None if energy else "no permission to read RAPL",
        "baseline": one.baseline if base is not None else None,
        "speedup_over_uncompressed": None
        if base is None
        else Speedup(
            **{
                part: ratio(f"{part}_ms")
                for part in ("vision_encode", "prefill", "ttft", "request")
            }
        ),
    }
    return VariantResult(**(fields | one.extra))


def _limits(results: Sequence[VariantResult]) -> Limits:
    def stages(result: VariantResult) -> tuple[StageLimits, ...]:
        times: dict[LimitedStage, float] = {
            "vision_encode": result.vision_encode_ms.median,
            "prefill": result.prefill_ms.median,
        }
        return tuple(
            StageLimits(
                stage=stage,
                gflop=50.0,
                bytes=2e8,
                rate_precision="fp32",
                compute_ms=measured / 2,
                memory_ms=measured / 4,
                bound="compute",
                measured_ms=measured,
                fraction_reached=0.5,
            )
            for stage, measured in times.items()
        )

    return Limits(
        rates=MachineRates(
            matrix_gflops={"fp32": 120.0}, memory_gb_per_s=11.0, threads=None, notes=()
        ),
        variants=tuple(
            VariantLimits(name=one.name, stages=stages(one), note=None) for one in results
        ),
    )


def _fits(made: Sequence[Made], times: dict[str, dict[str, list[float]]]) -> tuple[Any, ...]:
    groups: dict[str, list[Measured]] = {}
    for one in made:
        if one.after_block is not None:
            points = groups.setdefault(one.point["precision"], [])
            runs = times[one.name]["vision_encode_ms"]
            points.append(Measured(one.name, one.after_block / BLOCKS, runs))
    return tuple(
        fit_affine(f"laco, {precision}", "vision_encode", points)
        for precision, points in groups.items()
    )


__all__ = ["BLOCKS", "LENGTHS", "THREE", "Made", "report_of", "sweep_of"]
