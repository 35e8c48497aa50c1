"""The circumstances of a benchmark, as pairs of words."""

from __future__ import annotations

from collections.abc import Iterator

from laco_deploy.benchmark.schema import BenchReport


def facts(report: BenchReport) -> Iterator[tuple[str, str]]:
    """What was measured, where and with what settings, by the names that people use."""
    yield from _machine(report)
    yield from _quality(report)
    yield from _settings(report)
    for bundle in report.bundles:
        yield "bundle", f"{bundle.name}, laco.json SHA-256 {bundle.manifest_sha256}"
        yield "precision", _pairs(bundle.precision)


def _machine(report: BenchReport) -> Iterator[tuple[str, str]]:
    machine = report.machine
    yield "processor", f"{machine.cpu_model}, {machine.architecture}"
    yield "cores usable", str(machine.usable_cores)
    yield "memory", "unknown" if machine.memory_bytes is None else _gb(machine.memory_bytes)
    yield "system", f"{machine.os}, Python {machine.python}"
    yield "packages", _pairs(machine.packages)
    if report.limits is not None:
        rates = report.limits.rates
        for precision, rate in rates.matrix_gflops.items():
            yield "matrix rate", f"{rate:.0f} GFLOP/s in {precision}"
        if rates.memory_gb_per_s is not None:
            yield "memory bandwidth", f"{rates.memory_gb_per_s:.1f} GB/s"


def _quality(report: BenchReport) -> Iterator[tuple[str, str]]:
    quality = report.quality
    load, drift = quality.load, quality.drift
    yield (
        "load",
        f"{_known(load.load_average_start)} at the start, {_known(load.load_average_end)} at the "
        f"end; {load.own_cpu_seconds:.1f} s of processor time in {load.wall_seconds:.1f} s",
    )
    if load.others_share is not None:
        yield "other programs", f"{load.others_share:.1%} of the processor time of the machine"
    if drift is not None:
        yield (
            "drift",
            f"{drift.percent_per_round:+.2f} % per round of {drift.variant} "
            f"({drift.ci95_low:+.2f} to {drift.ci95_high:+.2f}), "
            f"{drift.percent_in_all:+.1f} % in all",
        )
    yield (
        "processor clock",
        f"{_known(quality.cpu_mhz_start, 0)} MHz at the start, "
        f"{_known(quality.cpu_mhz_end, 0)} MHz at the end",
    )
    worst = max(report.results, key=lambda one: abs(one.stage_sum_error))
    yield "sum of the stages", f"{worst.stage_sum_error:+.2%} at worst ({worst.name})"
    overhead = max(result.overhead_share for result in report.results)
    yield "overhead of the benchmark", f"{overhead:.3%} of the request at most"


def _settings(report: BenchReport) -> Iterator[tuple[str, str]]:
    settings, image = report.settings, report.settings.image
    yield "engine", f"{settings.engine} on {settings.device} ({settings.device_reason})"
    yield "threads", "the engine's choice" if settings.threads is None else str(settings.threads)
    yield (
        "image",
        f"{image.name or 'synthetic'}, {image.width}x{image.height}, "
        f"{image.size_bytes / 1000:.0f} kB",
    )
    yield "prompt", settings.prompt
    if settings.sweep is not None:
        sweep = settings.sweep
        yield "checkpoint", f"{sweep.checkpoint}, SHA-256 {sweep.checkpoint_sha256}"
        axes = {key: ",".join(values) for key, values in sweep.axes.items()}
        yield "sweep", "; ".join(f"{key} = {value}" for key, value in axes.items())


def _known(value: float | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


__all__ = ["facts"]
