"""Times, order and ratios of a benchmark, exactly, on a fake clock."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laco_deploy.benchmark.measure import round_orders
from laco_deploy.benchmark.run import BenchJob, run_benchmark
from laco_deploy.benchmark.schema import BenchReport, VariantResult
from laco_runtimes.bundle import open_bundle, seal_bundle
from laco_runtimes.engines import ENGINES
from laco_runtimes.errors import (
    ArgumentError,
    BundleError,
    ContextLengthError,
    EngineError,
    ImageFileNotFoundError,
)
from laco_runtimes.manifest import MANIFEST_NAME, BundleFacts, ImageLayout
from laco_runtimes.newline import write_newline
from tests.benchmark.fakes import WIDTH, Bench

VARIANTS = ("laco", "external", "uncompressed")

pytestmark = pytest.mark.usefixtures("photo")  # decodes faster than the synthetic picture


def job(engine: Path, **changes: Any) -> BenchJob:
    settings: dict[str, Any] = {
        "engine": engine,
        "image": engine.parent / "photo.png",
        "prompt": "What is it?",
        "new_tokens": (4,),
        "runs": 3,
        "warmup": 0,
        "memory": False,
        "energy": False,
        "limits": False,
    }
    return BenchJob(**settings | changes)


def result(report: BenchReport, name: str) -> VariantResult:
    found = report.result(name)
    assert found is not None
    return found


def test_every_stage_gets_exactly_its_time(bundle: Path, bench: Bench) -> None:
    bench.encode_ms = {"laco": [7]}
    bench.prefill_ms = {"laco": 20}
    found = result(run_benchmark(job(bundle), clock=bench.clock), "laco")
    assert found.preprocess_ms.runs == (3.0, 3.0, 3.0)
    assert found.vision_encode_ms.runs == (7.0, 7.0, 7.0)
    assert found.embed_ms.runs == (1.0, 1.0, 1.0)
    assert found.prefill_ms.runs == (20.0, 20.0, 20.0)
    assert found.ttft_ms.runs == (31.0, 31.0, 31.0)
    assert found.tpot_ms is not None
    assert found.tpot_ms.runs == (5.0, 5.0, 5.0)
    assert found.request_ms.runs == (46.0, 46.0, 46.0)
    assert found.tokens_per_second.median == pytest.approx(4 / 0.046)


def test_percentiles_interpolate_between_the_runs_of_one_variant(
    bundle: Path, bench: Bench
) -> None:
    bench.encode_ms = {"laco": [30, 10, 50, 20, 40]}
    found = result(run_benchmark(job(bundle, runs=5), clock=bench.clock), "laco").vision_encode_ms
    assert found.runs == (30.0, 10.0, 50.0, 20.0, 40.0)
    assert (found.median, found.p10, found.p90) == (30.0, pytest.approx(14), pytest.approx(46))


def test_answers_have_exactly_new_tokens_although_every_token_is_a_stop(
    bundle: Path, bench: Bench
) -> None:
    run_benchmark(job(bundle, runs=2, warmup=1, new_tokens=(9,)), clock=bench.clock)
    requests = 3 * len(VARIANTS)
    calls = [call for _, call in bench.calls]
    assert calls.count("prefill") == requests
    assert calls.count("step") == requests * 8


def test_one_new_token_has_no_time_per_further_token(bundle: Path, bench: Bench) -> None:
    found = result(run_benchmark(job(bundle, new_tokens=(1,)), clock=bench.clock), "laco")
    assert found.tpot_ms is None
    assert found.request_ms == found.ttft_ms


def test_warm_up_is_not_counted(bundle: Path, bench: Bench) -> None:
    bench.encode_ms = {"laco": [9000, 9000, 10]}
    report = run_benchmark(job(bundle, warmup=2), clock=bench.clock)
    assert result(report, "laco").vision_encode_ms.runs == (10.0, 10.0, 10.0)
    assert Counter(bench.requests()) == dict.fromkeys(VARIANTS, 5)


def test_variants_take_turns_in_every_round(bundle: Path, bench: Bench) -> None:
    run_benchmark(job(bundle, runs=6), clock=bench.clock)
    order = bench.requests()
    rounds = [tuple(order[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(one) == sorted(VARIANTS) for one in rounds)
    assert len(set(rounds)) > 1


def test_each_variant_takes_each_place_equally_often() -> None:
    orders = list(round_orders(VARIANTS, 9, seed=0))
    for place in range(3):
        assert Counter(order[place] for order in orders) == dict.fromkeys(VARIANTS, 3)


def test_order_depends_on_the_seed_alone() -> None:
    orders = list(round_orders(VARIANTS, 9, seed=1))
    assert orders == list(round_orders(VARIANTS, 9, seed=1))
    assert any(orders != list(round_orders(VARIANTS, 9, seed=seed)) for seed in range(2, 8))


def test_speedup_pairs_the_requests_of_one_round(bundle: Path, bench: Bench) -> None:
    bench.encode_ms = {"laco": [10, 10, 30], "uncompressed": [40, 80, 60]}
    speedup = result(
        run_benchmark(job(bundle), clock=bench.clock), "laco"
    ).speedup_over_uncompressed
    assert speedup is not None
    vision = speedup.vision_encode  # of 4, 8 and 2; the ratio of the medians would be 6
    assert (vision.median, vision.p10, vision.p90) == (4.0, pytest.approx(2.4), pytest.approx(7.2))
    assert speedup.prefill.median == 1.0
    assert speedup.ttft.median == pytest.approx((40 + 24) / (10 + 24))
    assert speedup.request.median == pytest.approx((40 + 39) / (10 + 39))


def test_uncompressed_is_as_fast_as_itself(bundle: Path, bench: Bench) -> None:
    bench.encode_ms = {"uncompressed": [40, 80, 60]}
    report = run_benchmark(job(bundle), clock=bench.clock)
    speedup = result(report, "uncompressed").speedup_over_uncompressed
    assert speedup is not None
    assert speedup.vision_encode.p10 == speedup.request.p90 == 1.0


@pytest.mark.parametrize("bundle", [("laco",), ("laco", "external")], indirect=True)
def test_without_an_uncompressed_baseline_there_is_no_speedup(bundle: Path, bench: Bench) -> None:
    report = run_benchmark(job(bundle), clock=bench.clock)
    assert all(one.speedup_over_uncompressed is None for one in report.results)
    assert report.results[0].name == "laco"


def test_tiles_and_ends_of_rows_are_counted(bundle: Path, bench: Bench) -> None:
    sealed = open_bundle(bundle).manifest
    (bundle / MANIFEST_NAME).unlink()
    write_newline(bundle, np.zeros(WIDTH, np.float32))
    layout = ImageLayout(image_mode="anyres", newline=True)
    facts = sealed.model_dump(exclude={"files"}) | {"layout": layout}
    seal_bundle(bundle, BundleFacts(**facts))
    report = run_benchmark(job(bundle), clock=bench.clock)
    # 2 x 2 tiles and the whole; of the photo of 12 x 10 pixels, one row at each border is black.
    assert result(report, "laco").visual_tokens == 4 + 4 * (4 + 1)
    assert result(report, "uncompressed").visual_tokens == 16 + 6 * (8 + 1)


def test_counts_of_tokens_are_those_of_the_variant(bundle: Path, bench: Bench) -> None:
    report = run_benchmark(job(bundle), clock=bench.clock)
    laco, whole = result(report, "laco"), result(report, "uncompressed")
    assert (laco.visual_tokens, whole.visual_tokens) == (4, 16)
    assert whole.prompt_tokens - laco.prompt_tokens == 12
    assert not laco.latency_only
    assert whole.latency_only


def test_settings_say_the_device_in_force_and_why(bundle: Path, bench: Bench) -> None:
    settings = run_benchmark(job(bundle), clock=bench.clock).settings
    assert (settings.device_requested, settings.device) == ("auto", "toaster")
    assert settings.device_reason == "nothing else here"


def test_settings_say_what_the_image_was(bundle: Path, bench: Bench, photo: Path) -> None:
    image = run_benchmark(job(bundle), clock=bench.clock).settings.image
    assert (image.name, image.width, image.height) == ("photo.png", 12, 10)
    assert image.size_bytes == photo.stat().st_size


def test_without_an_image_there_is_a_synthetic_one(bundle: Path, bench: Bench) -> None:
    image = run_benchmark(job(bundle, image=None, runs=1), clock=bench.clock).settings.image
    assert (image.name, image.width, image.height) == (None, 640, 480)


def test_variants_on_different_devices_are_refused(bundle: Path, bench: Bench) -> None:
    bench.devices = {"uncompressed": "fridge"}
    with pytest.raises(EngineError, match=r"fridge, toaster.*--device"):
        run_benchmark(job(bundle), clock=bench.clock)
    assert not bench.calls


def test_answer_that_does_not_fit_is_refused_before_anything_is_loaded(
    bundle: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ENGINES, "onnxruntime")  # loading would say so
    with pytest.raises(ContextLengthError, match=r"190 new tokens .*'uncompressed'"):
        run_benchmark(job(bundle, new_tokens=(190,)), clock=bench.clock)


def test_bundle_for_an_unknown_engine_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ENGINES, "onnxruntime")
    with pytest.raises(BundleError, match="cannot run"):
        run_benchmark(job(bundle))


def test_missing_image_is_refused(bundle: Path, bench: Bench) -> None:
    with pytest.raises(ImageFileNotFoundError):
        run_benchmark(job(bundle, image=bundle / "none.jpg"), clock=bench.clock)


@pytest.mark.parametrize(
    "wrong",
    [
        {"new_tokens": (0,)},
        {"new_tokens": ()},
        {"runs": 0},
        {"warmup": -1},
        {"threads": 0},
        {"prompt": " "},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        job(Path("engine"), **wrong)


def test_progress_counts_every_request(bundle: Path, bench: Bench) -> None:
    seen: list[tuple[str, int, int]] = []
    run_benchmark(
        job(bundle, warmup=2),
        clock=bench.clock,
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert [one for one in seen if one[0] == "loading"][-1] == ("loading", 3, 3)
    assert [done for what, done, total in seen if what == "measuring"] == [*range(16), 15]
    assert seen[-1] == ("measuring", 15, 15)


@pytest.mark.parametrize("bundle", [("laco", "uncompressed", "external")], indirect=True)
def test_uncompressed_comes_last_whatever_the_order_in_the_bundle(
    bundle: Path, bench: Bench
) -> None:
    report = run_benchmark(job(bundle, runs=1), clock=bench.clock)
    assert [one.name for one in report.results] == ["laco", "external", "uncompressed"]
