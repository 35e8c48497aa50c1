"""Samples as tensors: what the processor would make of them, and defects that are reported."""

from __future__ import annotations

import json
import struct
import zlib
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from laco_deploy.training.corpus import (
    Broken,
    ChatOptions,
    Collator,
    Corpus,
    Encoded,
    MixtureEntry,
    TrainingSet,
)
from tests.bundles import IMAGE_SIZE, random_model
from tests.training.corpus.samples import (
    CONTENT,
    llava_entries,
    picture,
    processor,
    turns,
    write_json,
    write_jsonl,
    write_parquet,
    write_shard,
)
from tests.training.corpus.videos import write_video

OWN = processor()


def training_set(path: Path, ours: Any = None, **options: Any) -> TrainingSet:
    corpus = Corpus([MixtureEntry(path)])
    return TrainingSet(corpus, ours or processor(), ChatOptions(**options))


def one(tmp_path: Path, entry: Any, ours: Any = None, **options: Any) -> Encoded | Broken:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([entry]))  # ASCII, so that halves of surrogate pairs can be written
    return training_set(path, ours, **options)[0]


def entry(question: str, **media: Any) -> dict[str, Any]:
    return {"id": "x", "conversations": turns(question, "a"), **media}


def test_every_format_gives_the_same_tensors(tmp_path: Path) -> None:
    sets = [
        training_set(path)
        for path in (
            write_json(tmp_path / "a.json", llava_entries(tmp_path)),
            write_jsonl(tmp_path / "a.jsonl", llava_entries(tmp_path)),
            write_parquet(tmp_path / "a.parquet"),
            write_shard(tmp_path / "a.tar"),
        )
    ]
    for index in range(len(CONTENT)):
        first, *others = (one[index] for one in sets)
        assert isinstance(first, Encoded)
        assert (first.pixels is None) == (CONTENT[index][2] is None)
        for other in others:
            assert isinstance(other, Encoded)
            for name in ("ids", "labels", "pixels", "image_sizes", "num_tiles", "is_video"):
                mine, theirs = getattr(first, name), getattr(other, name)
                assert mine is theirs is None or torch.equal(mine, theirs)


def test_a_set_can_be_sent_to_a_worker_process(tmp_path: Path) -> None:
    samples = training_set(write_json(tmp_path / "a.json", llava_entries(tmp_path)))
    mine, theirs = samples[0], ForkingPickler.loads(ForkingPickler.dumps(samples))[0]
    assert torch.equal(mine.ids, theirs.ids)  # type: ignore[union-attr]
    assert torch.equal(mine.pixels, theirs.pixels)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("mode", ["square", "anyres"])
@pytest.mark.parametrize("images", [1, 3])
def test_pixels_and_ids_are_those_of_the_processor(tmp_path: Path, mode: Any, images: int) -> None:
    ours = processor(image_newline=mode == "anyres")
    pictures = [picture(i, (130, 60 + i)) for i in range(images)]
    names = []
    for i, data in enumerate(pictures):
        (tmp_path / f"{i}.png").write_bytes(data)
        names.append(f"{i}.png")
    question = "<image>\nWhat?" if images == 1 else "<image>\n<image> <image>What?"
    found = one(tmp_path, entry(question, image=names), ours, image_mode=mode)
    assert isinstance(found, Encoded)
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"{question}<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    )
    expected = ours(pictures, text, image_mode=mode, return_tensors="pt")
    assert found.ids.tolist() == expected["input_ids"][0].tolist()
    for mine, theirs in (
        ("pixels", "pixel_values"),
        ("image_sizes", "image_sizes"),
        ("num_tiles", "num_tiles"),
    ):
        assert torch.equal(getattr(found, mine), expected[theirs])
    # Only an image alone in its prompt is cut into tiles.
    assert (len(found.pixels) > images) == (mode == "anyres" and images == 1)  # type: ignore[arg-type]


def test_lengths_are_near_the_number_of_tokens_and_tell_text_apart(tmp_path: Path) -> None:
    long = "word " * 400
    entries = [
        *llava_entries(tmp_path),
        {"conversations": turns(long, long)},
        entry("<image><image>", image=["one.png", "one.png"]),
        entry("<video>", video="v.mp4"),
    ]
    found = training_set(write_json(tmp_path / "a.json", entries), max_frames=5).lengths
    assert [length > 0 for length in found] == [True, False, True, True, False, True, True]
    assert abs(found[4]) == pytest.approx(1000, rel=0.05)
    assert found[5] - found[0] == pytest.approx(16, abs=8)
    assert found[6] > 5 * 16


# Broken samples.


def bomb() -> bytes:
    """A PNG of 30000 x 30000 pixels in a few bytes."""
    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


BROKEN_IMAGES = {
    "empty": b"",
    "truncated jpeg": picture(1, (300, 300), "JPEG")[:5000],
    "truncated png": picture(1, (300, 300))[:5000],
    "no image": b"<html>404</html>",
    "decompression bomb": bomb(),
    "script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
}


@pytest.mark.parametrize("what", BROKEN_IMAGES)
def test_a_broken_image_is_reported_by_every_format(tmp_path: Path, what: str) -> None:
    content = [("bad", turns("<image>", "a"), BROKEN_IMAGES[what]), CONTENT[0]]
    for path in (
        write_json(tmp_path / "a.json", llava_entries(tmp_path, content)),
        write_parquet(tmp_path / "a.parquet", content),
        write_shard(tmp_path / "a.tar", content),
    ):
        samples = training_set(path)
        broken = samples[0]
        assert isinstance(broken, Broken)
        assert (broken.name, broken.source, broken.fault) == ("bad", "made", "broken_image")
        assert isinstance(samples[1], Encoded)


@pytest.mark.parametrize(
    ("sample", "fault"),
    [
        (entry("<image>", image="nothing.png"), "missing_image"),
        (entry("<image>", image="http://example.com/a.png"), "missing_image"),
        (entry("<image>", image="a\0b.png"), "missing_image"),
        (entry("<image>", image="x" * 5000), "broken_image"),
        (entry("<image>", image="."), "missing_image"),
        (entry("<video>", video="nothing.mp4"), "missing_video"),
        (entry("<video>", video="rtsp://example.com/a"), "missing_video"),
        (entry("<video>", video="a\0b"), "missing_video"),
        (entry("<video>", video="x" * 5000), "broken_video"),
        (entry("<image>", image="\ud800"), "missing_image"),
        (entry("<video>", video="\ud800"), "missing_video"),
        (entry("<image>"), "marker_mismatch"),
        ({"conversations": "what"}, "dialogue"),
        (None, "unreadable"),
    ],
)
def test_other_defects_are_reported(tmp_path: Path, sample: Any, fault: str) -> None:
    found = one(tmp_path, sample)
    assert isinstance(found, Broken)
    assert found.fault == fault
    assert found.name in ("x", "data.json[0]")


def test_a_sample_whose_image_would_be_cut_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    found = one(tmp_path, entry("<image>", image="a.png"), max_length=20)
    assert isinstance(found, Broken)
    assert found.fault == "too_long"


# Videos.


def shades(found: Encoded | Broken) -> list[int]:
    """Brightness of each frame, 0 to 255."""
    assert isinstance(found, Encoded)
    assert found.pixels is not None
    spec = processor().image_processor.preprocessing
    middle = found.pixels[:, :, IMAGE_SIZE // 2, IMAGE_SIZE // 2]  # [frames, 3]
    return [round(v) for v in ((middle[:, 0] * spec.std[0] + spec.mean[0]) * 255).tolist()]


def test_a_video_file_is_sampled_by_the_second(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", [5 * i for i in range(50)], fps=10)
    found = one(tmp_path, entry("<video>\nq", video="v.avi"))
    assert shades(found) == pytest.approx([0, 50, 100, 150, 200], abs=8)
    assert isinstance(found, Encoded)
    assert found.is_video is not None
    assert found.is_video.tolist() == [True]
    assert (found.ids == processor().image_token_id).sum() == 5 * 16
    faster = one(tmp_path, entry("<video>\nq", video="v.avi"), fps=2)
    assert shades(faster) == pytest.approx([25 * i for i in range(10)], abs=8)
    few = one(tmp_path, entry("<image>\nq", video="v.avi"), max_frames=3)
    assert shades(few) == pytest.approx([0, 120, 245], abs=8)


def test_colours_of_a_video_are_rgb(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", [(200, 100, 0)] * 3, fps=1)
    found = one(tmp_path, entry("<video>", video="v.avi"))
    assert isinstance(found, Encoded)
    assert found.pixels is not None
    spec = processor().image_processor.preprocessing
    red, green, blue = found.pixels[0, :, 20, 20] * torch.tensor(spec.std) + torch.tensor(spec.mean)
    assert (red * 255, green * 255, blue * 255) == pytest.approx((200, 100, 0), abs=12)


def test_a_folder_of_frames_is_a_video_in_natural_order(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    for i in range(1, 13):
        Image.new("RGB", (30, 20), (i * 10,) * 3).save(folder / f"frame_{i}.png")
    (folder / "notes.txt").write_text("not a frame")
    assert shades(one(tmp_path, entry("<video>", video="v"))) == list(range(10, 130, 10))
    thinned = one(tmp_path, entry("<video>", video="v"), max_frames=3)
    assert shades(thinned) == [10, 60, 120]


def test_a_video_that_is_shorter_than_it_says_is_sampled_over_what_is_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "v.avi"
    write_video(path, [5 * i for i in range(50)], fps=10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = shades(one(tmp_path, entry("<video>", video="v.avi"), max_frames=3, fps=10))
    assert len(found) == 3
    assert found[0] < 10 < found[1] < found[2] < 160


@pytest.mark.parametrize("what", ["empty file", "no video", "no frames", "empty folder", "frame"])
def test_a_video_without_frames_is_reported(tmp_path: Path, what: str) -> None:
    path = tmp_path / "v"
    if what == "empty file":
        path.write_bytes(b"")
    elif what == "no video":
        path.write_bytes(b"nothing of the kind" * 100)
    elif what == "no frames":
        write_video(path.with_suffix(".avi"), [0], fps=10)
        path.write_bytes(path.with_suffix(".avi").read_bytes()[:300])
    else:
        path.mkdir()
        if what == "frame":
            (path / "1.png").write_bytes(b"broken")
    found = one(tmp_path, entry("<video>", video="v"))
    assert isinstance(found, Broken)
    assert found.fault == "broken_video"


# All of it, into the model.


def test_a_batch_of_everything_goes_through_the_model(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", range(0, 200, 10), fps=5)
    (tmp_path / "wide.png").write_bytes(picture(3, (200, 60)))
    entries = [
        *llava_entries(tmp_path),
        entry("<image> <image>q", image=["one.png", "wide.png"]),
        entry("<image>q", image="wide.png"),
        entry("<video>q", video="v.avi"),
        entry("<image>", image="gone.png"),
    ]
    own = processor(image_newline=True, video_pool_stride=2)
    samples = training_set(write_json(tmp_path / "a.json", entries), own, image_mode="anyres")
    batch = Collator(0)([samples[i] for i in range(len(samples))])
    (broken,) = batch.pop("broken")
    assert broken.fault == "missing_image"
    config = _config(own)
    loss = random_model(config, 0)(**batch).loss
    assert np.isfinite(loss.item())


def _config(own: Any) -> Any:
    from tests.bundles import random_config

    config = random_config(vocab_size=len(own.tokenizer))
    config.image_token_id = own.image_token_id
    config.image_newline, config.video_pool_stride = True, 2
    config.image_mode = "anyres"
    return config


# Anything else that a file may say.

words = st.sampled_from(["<image>", "<video>", "<|im_end|>", "a.png", "human", "gpt", "", "\ud800"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "value", "role", "content"]), inner)
    ),
    max_leaves=6,
)
turn = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": words | anything})
whole = st.lists(turn, max_size=4) | st.just(turns("<image>", "a"))
keys = {"id": anything, "image": words | anything, "video": words | anything}
samples_of_any_kind = anything | st.fixed_dictionaries(
    {"conversations": whole | anything}, optional={**keys, "data_source": anything}
)


@settings(max_examples=150, deadline=None)
@given(st.lists(samples_of_any_kind, min_size=1, max_size=4))
def test_whatever_a_sample_says_it_is_encoded_or_broken(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    (path.parent / "a.png").write_bytes(picture())
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    samples = training_set(path, OWN, max_frames=2)
    assert len(samples) == len(samples.lengths) == len(entries)
    for index in range(len(samples)):
        found = samples[index]
        assert isinstance(found, Encoded | Broken)
        json.dumps([found.name, found.source], ensure_ascii=False).encode()
