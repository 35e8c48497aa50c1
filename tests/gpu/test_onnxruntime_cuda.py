"""ONNX Runtime's CUDA provider runs the same bundle as its CPU provider and answers alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines.tensorrt_device import Device
from tests.gpu.test_tensorrt import answers, cosine, load, pixels

if TYPE_CHECKING:
    from tests.gpu.conftest import GpuBundles

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda_provider(device: Device) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDAExecutionProvider: install onnxruntime-gpu")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cuda_answers_as_the_cpu(bundles: GpuBundles, precision: str) -> None:
    folder = bundles("onnxruntime", precision)
    vocab = open_bundle(folder).manifest.language.vocab_size
    cuda, reference = load(folder, "cuda"), load(bundles("onnxruntime", "fp32"), "cpu")
    images = pixels(folder)
    assert cosine(cuda.vision.encode(images), reference.vision.encode(images)) > 0.999
    for found, wanted in zip(answers(cuda, vocab), answers(reference, vocab), strict=True):
        assert cosine(found, wanted) > 0.999
