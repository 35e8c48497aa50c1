"""How a bundle states its layout of visual tokens, and the vector that ends their rows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from laco_runtimes.bundle import open_bundle, seal_bundle
from laco_runtimes.errors import BundleError
from laco_runtimes.manifest import MANIFEST_NAME, NEWLINE_NAME, BundleFacts, ImageLayout
from laco_runtimes.newline import read_newline, write_newline
from tests.runtime.fakes import WIDTH


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / MANIFEST_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def saved(array: NDArray[Any], *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def test_a_bundle_of_format_2_is_read_as_one_without_a_layout(bundle: Path) -> None:
    def make_old(data: dict[str, Any]) -> None:
        data["format_version"] = 2
        del data["layout"]

    edit(bundle, make_old)
    manifest = open_bundle(bundle).manifest
    assert manifest.layout == ImageLayout(image_mode="square", newline=False)
    assert manifest.layout.one_tile
    layout = manifest.token_layout(manifest.variants[0])
    assert layout.image_tokens((900, 30), 1) == manifest.variants[0].tokens_per_tile


def test_format_2_cannot_have_another_layout(bundle: Path) -> None:
    edit(bundle, lambda data: data.update(format_version=2, layout={"image_mode": "anyres"}))
    with pytest.raises(BundleError, match="format 2 has no layout"):
        open_bundle(bundle)


@pytest.mark.parametrize("variant", [0, 1])
def test_the_layout_of_tokens_is_that_of_the_variant(facts: BundleFacts, variant: int) -> None:
    settings = {"image_mode": "anyres", "newline": True, "max_tiles": 4, "video_pool_stride": 2}
    changed = facts.model_copy(update={"layout": ImageLayout(**settings)})
    layout = changed.token_layout(facts.variants[variant])
    assert asdict(layout) == {
        "image_size": 8,
        "merged_grid": facts.variants[variant].merged_grid,
        **settings,
    }


def test_a_newline_and_its_file_belong_together(unsealed: Path, facts: BundleFacts) -> None:
    marked = facts.model_copy(update={"layout": ImageLayout(newline=True)})
    with pytest.raises(BundleError, match="belong together"):
        seal_bundle(unsealed, marked)
    write_newline(unsealed, np.zeros(WIDTH, np.float32))
    with pytest.raises(BundleError, match="belong together"):
        seal_bundle(unsealed, facts)
    seal_bundle(unsealed, marked)
    assert open_bundle(unsealed).manifest.layout.newline


def test_the_newline_is_read_as_it_was_written(unsealed: Path, facts: BundleFacts) -> None:
    marked = facts.model_copy(update={"layout": ImageLayout(newline=True)})
    vector = np.arange(WIDTH, dtype=np.float32)
    write_newline(unsealed, vector)
    found = read_newline(unsealed, marked)
    assert found is not None
    assert np.array_equal(found, vector)
    assert read_newline(unsealed, facts) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        saved(np.zeros(WIDTH + 1, np.float32)),
        saved(np.zeros((1, WIDTH), np.float32)),
        saved(np.zeros(WIDTH, np.float64)),
        saved(np.full(WIDTH, np.nan, np.float32)),
        saved(np.full(WIDTH, np.inf, np.float32)),
        saved(np.zeros(WIDTH, np.float32))[:-1],
        saved(np.array([object()]), allow_pickle=True),
        saved(np.zeros(WIDTH, np.float32)).replace(b"(%d,)" % WIDTH, b"(9999999999999,)"),
    ],
    ids=["empty", "cut", "longer", "2d", "f64", "nan", "inf", "short", "pickle", "liar"],
)
def test_a_newline_that_is_no_vector_of_the_model_is_refused(
    unsealed: Path, facts: BundleFacts, content: bytes
) -> None:
    marked = facts.model_copy(update={"layout": ImageLayout(newline=True)})
    (unsealed / NEWLINE_NAME).write_bytes(content)
    with pytest.raises(BundleError, match=r"image_newline\.npy.*Export the model again"):
        read_newline(unsealed, marked)


def test_visual_tokens_are_said_by_image_or_by_tile(facts: BundleFacts) -> None:
    def said(**settings: Any) -> str:
        changed = facts.model_copy(update={"layout": ImageLayout(**settings)})
        return changed.said_tokens(facts.variants[0])

    assert said() == "4 visual tokens per image"
    assert said(newline=True) == "5 visual tokens per image"
    assert said(image_mode="anyres", newline=True) == "4 visual tokens per tile"
