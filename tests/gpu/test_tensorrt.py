"""Plans on a real GPU: that they load, answer as ONNX Runtime does, and replay as CUDA graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import Floats, LoadedEngine, LoadRequest
from laco_runtimes.engines.tensorrt_device import OPENERS, Device
from laco_runtimes.engines.tensorrt_run import Replay

if TYPE_CHECKING:
    from tests.gpu.conftest import GpuBundles

pytestmark = pytest.mark.gpu

PRODUCTS = ("tensorrt-rtx", "tensorrt")
LEAST_COSINE = {"fp16": 0.999, "bf16": 0.99, "int8": 0.98}
PROMPT, STEPS = 40, 24


def load(folder: Path, device: str = "auto") -> LoadedEngine:
    bundle = open_bundle(folder)
    return load_engine(LoadRequest(bundle.root, bundle.manifest, bundle.variant("laco"), device))


def pixels(folder: Path, count: int = 3) -> Floats:
    side = open_bundle(folder).manifest.vision.image_size
    return np.random.default_rng(0).standard_normal((count, 3, side, side), np.float32)


def answers(engine: LoadedEngine, vocab: int) -> list[Floats]:
    """Logits of a prompt and of the steps behind it."""
    ids = [int(one) for one in np.random.default_rng(1).integers(0, vocab, PROMPT + STEPS)]
    engine.language.rewind(0)
    found = [engine.language.prefill(engine.language.embed(ids[:PROMPT]))]
    return found + [engine.language.step(one) for one in ids[PROMPT:]]


def cosine(one: Floats, other: Floats) -> float:
    """The least, along the last axis."""
    rows, others = (a.reshape(-1, a.shape[-1]).astype(np.float64) for a in (one, other))
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    return float(((rows * others).sum(1) / lengths).min())


@pytest.mark.parametrize("precision", LEAST_COSINE)
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_plan_loads_and_answers_as_onnx_runtime(
    device: Device, bundles: GpuBundles, product: str, precision: str
) -> None:
    folder, exact = bundles(product, precision), bundles("onnxruntime", "fp32")
    vocab = open_bundle(folder).manifest.language.vocab_size
    ours, reference = load(folder), load(exact, "cpu")
    least = LEAST_COSINE[precision]
    images = pixels(folder)
    assert cosine(ours.vision.encode(images), reference.vision.encode(images)) > least
    for found, wanted in zip(answers(ours, vocab), answers(reference, vocab), strict=True):
        assert cosine(found, wanted) > least


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_flavour_for_old_versions_answers_alike(
    device: Device, bundles: GpuBundles, product: str
) -> None:
    new, old = bundles(product, "fp16"), bundles(product, "fp16", "concat")
    vocab = open_bundle(new).manifest.language.vocab_size
    for one, other in zip(answers(load(new), vocab), answers(load(old), vocab), strict=True):
        assert cosine(one, other) > 0.999


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_replayed_graph_answers_as_the_enqueued_step(
    device: Device, bundles: GpuBundles, product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundles(product, "fp16")
    vocab = open_bundle(folder).manifest.language.vocab_size
    engine = load(folder)
    recorded: list[bool] = []
    record = Replay._recorded

    def noted(self: Replay) -> object:
        graph = record(self)
        recorded.append(graph is not None)
        return graph

    monkeypatch.setattr(Replay, "_recorded", noted)
    replayed = answers(engine, vocab)
    assert recorded == [True], "the step was not recorded, or more than once"
    monkeypatch.setattr(Replay, "_recorded", lambda self: None)
    enqueued = answers(load(folder), vocab)
    for one, other in zip(replayed, enqueued, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_rewound_cache_answers_as_a_fresh_one(
    device: Device, bundles: GpuBundles, product: str
) -> None:
    engine = load(bundles(product, "fp16")).language
    first = engine.prefill(engine.embed([5, 6, 7, 8, 9]))
    engine.step(10)
    engine.step(11)
    engine.rewind(4)
    np.testing.assert_allclose(engine.step(9), first, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_second_load_finds_the_plans(device: Device, bundles: GpuBundles, product: str) -> None:
    folder = bundles(product, "fp16")
    load(folder)
    assert "plans built before" in load(folder).reason


@pytest.mark.parametrize("opener", OPENERS)
def test_each_way_to_the_gpu_copies_zeroes_and_counts(device: Device, opener: type) -> None:
    try:
        opened: Device = opener(0)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    assert opened.facts == device.facts
    buffer = opened.allocate(1024)
    found = np.ones(256, np.float32)
    opened.download(buffer, found)
    assert not found.any()
    opened.upload(np.arange(256, dtype=np.float32), buffer)
    opened.download(buffer, found)
    np.testing.assert_array_equal(found, np.arange(256, dtype=np.float32))
