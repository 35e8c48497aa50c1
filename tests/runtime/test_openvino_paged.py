"""The KV cache in blocks: when, that the file is left alone, and how blocks come to be more."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino")

from laco_runtimes.bundle import Bundle, open_bundle  # noqa: E402
from laco_runtimes.engines import load_engine, openvino, openvino_paged  # noqa: E402
from laco_runtimes.engines.base import Floats, LanguageModel, LoadRequest  # noqa: E402
from laco_runtimes.engines.openvino_graph import keep_positions  # noqa: E402
from laco_runtimes.engines.openvino_paged import (  # noqa: E402
    MACHINES,
    PagedLanguage,
    page_attention,
)
from laco_runtimes.engines.openvino_stateful import StatefulLanguage  # noqa: E402
from laco_runtimes.errors import EngineError, OutOfMemoryError  # noqa: E402

HERE = platform.machine().lower() in MACHINES
paged = pytest.mark.skipif(not HERE, reason="OpenVINO has no paged attention for this processor")

IDS = [(7 * place) % 300 for place in range(100)]


@pytest.fixture(scope="module")
def bundle(bundle_for: Callable[[str], Path]) -> Bundle:
    return open_bundle(bundle_for("openvino"))


def loaded(bundle: Bundle) -> LanguageModel:
    variant = bundle.variant("laco")
    return load_engine(LoadRequest(bundle.root, bundle.manifest, variant, "cpu")).language


def decoder(bundle: Bundle) -> Any:
    return openvino.openvino_core().read_model(bundle.root / bundle.manifest.decoder)


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


def assert_close(logits: Floats, expected: Floats) -> None:
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@paged
def test_a_cpu_pages_and_gives_the_logits_of_the_state(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks = loaded(bundle)
    monkeypatch.setattr(openvino, "page_attention", lambda model, layers: None)
    state = loaded(bundle)
    assert isinstance(in_blocks, PagedLanguage)
    assert isinstance(state, StatefulLanguage)
    for part in (IDS[:50], IDS[50:51], IDS[51:64], IDS[64:65], IDS[65:]):  # across blocks of 32
        one, other = (model.prefill(model.embed(part)) for model in (in_blocks, state))
        assert_close(one, other)


@paged
def test_the_graph_that_was_read_stays_as_it_is(bundle: Bundle) -> None:
    model, layers = decoder(bundle), bundle.manifest.language.layers
    keep_positions(model)
    before = kinds(model)
    found = page_attention(model, layers)
    assert kinds(model) == before
    assert found is not None
    assert kinds(found).count("PagedAttentionExtension") == layers
    assert not {"ReadValue", "ScaledDotProductAttention"} & set(kinds(found))


@paged
@pytest.mark.parametrize("reason", ["processor", "package", "layers", "attention", "refused"])
def test_what_cannot_be_paged_keeps_its_state(
    bundle: Bundle, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openvino import _offline_transformations as transformations

    name = "paged_attention_transformation"
    layers = bundle.manifest.language.layers
    if reason == "processor":
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    elif reason == "package":
        monkeypatch.delattr(transformations, name)
    elif reason == "layers":
        layers += 1
    elif reason == "attention":
        monkeypatch.setattr(transformations, name, lambda model: None)
    else:

        def refuse(model: Any) -> None:
            raise RuntimeError("no such operator")

        monkeypatch.setattr(transformations, name, refuse)
    model = decoder(bundle)
    keep_positions(model)
    assert page_attention(model, layers) is None
    if reason != "layers":
        language = loaded(bundle)
        assert isinstance(language, StatefulLanguage)
        assert np.isfinite(language.prefill(language.embed(IDS))).all()


@paged
def test_blocks_double_and_keep_what_they_hold(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = loaded(bundle)
    whole = expected.prefill(expected.embed(IDS))
    monkeypatch.setattr(openvino_paged, "FIRST_BLOCKS", 1)
    language = loaded(bundle)
    for token in IDS[:-1]:
        language.step(token)
    assert_close(language.step(IDS[-1]), whole)


@paged
def test_where_memory_ends_the_old_blocks_stay(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_paged, "FIRST_BLOCKS", 1)
    language = loaded(bundle)
    language.prefill(language.embed(IDS[:20]))
    expected = language.step(IDS[20])
    language.rewind(20)

    made, plain = 0, ov.Tensor

    def scarce(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += isinstance(args[0], ov.Type)  # a new cache
        if made == 3:
            raise MemoryError
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ov, "Tensor", scarce)
        with pytest.raises(OutOfMemoryError, match="decoding with OpenVINO failed"):
            language.prefill(language.embed(IDS[20:60]))
    assert made == 3
    assert language.length == 20
    assert_close(language.step(IDS[20]), expected)
    language.rewind(20)
    language.prefill(language.embed(IDS[20:60]))
    assert language.length == 60


@paged
def test_a_failed_pass_leaves_what_was_there_before(bundle: Bundle) -> None:
    language = loaded(bundle)
    language.prefill(language.embed(IDS[:20]))
    expected = language.step(IDS[20])
    language.rewind(20)
    with pytest.raises(EngineError, match="decoding with OpenVINO failed"):
        language.prefill(np.zeros((2, 7), np.float32))
    assert language.length == 20
    assert_close(language.step(IDS[20]), expected)
