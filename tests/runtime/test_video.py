"""Which frames of a video are taken, and what is refused before a decoder sees it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from laco_runtimes import video as video_module
from laco_runtimes.errors import (
    ArgumentError,
    ImageError,
    ImageFileNotFoundError,
    MissingPackageError,
)
from laco_runtimes.images import Preprocessing
from laco_runtimes.tiling import TokenLayout
from laco_runtimes.video import MAX_FRAMES, Video, chosen_frames
from laco_runtimes.visual import read_visuals
from tests.training.corpus.videos import write_video

COUNT = 50


def shade(frame: Image.Image) -> int:
    """Which frame it is: `write_video` makes frame i of the grey 5 i."""
    return round(float(np.asarray(frame).mean()) / 5)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds of ten frames each."""
    path = tmp_path_factory.mktemp("film") / "film.avi"
    write_video(path, [5 * i for i in range(COUNT)], fps=10)
    return path


def test_eight_frames_are_taken_evenly_unasked(film: Path) -> None:
    assert Video(film).read(shade) == [0, 7, 14, 21, 28, 35, 42, 49]


def test_frames_by_the_second(film: Path) -> None:
    assert Video(film, fps=2).read(shade) == list(range(0, 50, 5))
    assert Video(str(film), fps=0.5).read(shade) == [0, 20, 40]
    assert Video(film, fps=1000).read(shade) == list(range(50))


def test_frames_by_number(film: Path) -> None:
    assert Video(film, frames=1).read(shade) == [0]
    assert Video(film, frames=3).read(shade) == [0, 24, 49]
    assert Video(film, frames=500).read(shade) == list(range(50))


def test_colours_are_rgb(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", [(200, 100, 0)] * 3, fps=1)
    [frame] = Video(tmp_path / "v.avi", frames=1).read(np.asarray)
    assert np.abs(frame.astype(int) - (200, 100, 0)).max() <= 3


def test_frames_that_are_there_already_are_all_taken_unless_fewer_are_asked_for() -> None:
    frames = [np.full((4, 4, 3), 5 * i, np.uint8) for i in range(20)]
    for source in (frames, tuple(frames), np.stack(frames)):
        assert Video(source).read(shade) == list(range(20))
        assert Video(source, frames=3).read(shade) == [0, 9, 19]


@settings(max_examples=200, deadline=None)
@given(count=st.integers(0, 400), step=st.integers(1, 50), most=st.none() | st.integers(1, 40))
def test_chosen_frames_are_in_order_and_reach_from_end_to_end(
    count: int, step: int, most: int | None
) -> None:
    found = chosen_frames(count, step, most)
    assert found == sorted(set(found))
    assert all(0 <= number < count for number in found)
    everything = len(range(0, count, step))
    assert len(found) == (everything if most is None else min(everything, most))
    if found:
        assert found[0] == 0
    if most is not None and 1 < most < everything:
        assert found[-1] == count - 1


def test_a_film_becomes_tiles_and_tokens(film: Path) -> None:
    spec = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    layout = TokenLayout(image_size=8, merged_grid=(2, 2), image_mode="anyres", newline=True)
    [part] = read_visuals([Video(film, frames=5)], spec, layout)
    assert (part.tiles, part.tokens, part.size, part.is_video) == (5, 21, (48, 64), True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fps": 1, "frames": 2}, "both fps and frames"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": -1.0}, "above 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": float("inf")}, "fps is inf"),
        ({"fps": True}, "must be a number"),
        ({"fps": "2"}, "must be a number"),
        ({"frames": 0}, "frames is 0"),
        ({"frames": MAX_FRAMES + 1}, f"Give 1 to {MAX_FRAMES}"),
        ({"frames": 2.0}, "must be a whole number"),
        ({"frames": True}, "must be a whole number"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Video("film.avi", **arguments)


@pytest.mark.parametrize("source", [None, 7, b"RIFF", {"path": "x"}])
def test_another_kind_of_source_is_refused(source: Any) -> None:
    with pytest.raises(ArgumentError, match="cannot be read from"):
        Video(source)


def test_frames_that_are_there_have_no_rate() -> None:
    with pytest.raises(ArgumentError, match="frames that are there already"):
        Video([np.zeros((2, 2, 3), np.uint8)], fps=1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no frames"),
        (np.zeros((4, 4, 3), np.uint8), r"\[frames, H, W, 3\]"),
        (np.zeros((2, 4, 4, 3), np.float32), "uint8"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"\[H, W, 3\]"),
        ([np.zeros((4, 4, 3), np.uint8), b"nothing"], "known format"),
        ([np.zeros((1, 1, 3), np.uint8)] * (MAX_FRAMES + 1), f"{MAX_FRAMES} are the most"),
    ],
    ids=["list", "array", "image", "floats", "channels first", "bad frame", "too many"],
)
def test_frames_that_are_none_are_refused(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        Video(source).read(shade)


def test_a_file_of_too_many_frames_is_refused_before_it_is_decoded(
    film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_module, "MAX_FRAMES", 20)
    monkeypatch.setattr(video_module, "_decode", None)
    with pytest.raises(ImageError, match=r"50 frames would be taken.*smaller fps"):
        Video(film, fps=10).read(shade)


def playlist(path: Path, film: Path) -> None:
    path.write_text(f"#EXTM3U\n#EXTINF:1,\n{film}\n#EXT-X-ENDLIST\n")


def script(path: Path, film: Path) -> None:
    path.write_text(f"ffconcat version 1.0\nfile '{film}'\n")


def header_alone(path: Path, film: Path) -> None:
    path.write_bytes(film.read_bytes()[:200])


def no_frames(path: Path, film: Path) -> None:
    write_video(path, [], fps=10)


def noise(path: Path, film: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def framed_noise(path: Path, film: Path) -> None:
    path.write_bytes(b"\0\0\0\x18ftypisom" + np.random.default_rng(0).bytes(5000))


def damaged_frames(path: Path, film: Path) -> None:
    data = film.read_bytes()
    start = data.index(b"movi")
    path.write_bytes(data[:start] + b"movi" + bytes(len(data) - start - 4))


def empty(path: Path, film: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty, "not a video in a known format"),
        (noise, "not a video in a known format"),
        (playlist, "not a video in a known format"),
        (script, "not a video in a known format"),
        (header_alone, "cannot be decoded|no frames"),
        (no_frames, "cannot be decoded|no frames"),
        (framed_noise, "cannot be decoded|no frames"),
        (damaged_frames, "cannot be decoded|no frames"),
    ],
)
def test_a_file_without_frames_is_an_image_error(
    film: Path, tmp_path: Path, make: Callable[[Path, Path], None], message: str
) -> None:
    path = tmp_path / "other.avi"
    make(path, film)
    with pytest.raises(ImageError, match=message):
        Video(path).read(shade)


def test_no_decoder_is_given_a_playlist(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg would follow it to other files."""
    playlist(tmp_path / "list.m3u8", film)
    monkeypatch.setattr(cv2, "VideoCapture", None)
    with pytest.raises(ImageError, match="Convert it to one of MP4"):
        Video(tmp_path / "list.m3u8").read(shade)


@pytest.mark.parametrize("name", ["none.avi", ".", "nul\0byte.avi", "concat:a.avi|b.avi"])
def test_a_path_without_a_file_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageFileNotFoundError, match="no video file at"):
        Video(tmp_path / name).read(shade)


def test_a_name_that_reads_like_a_protocol_is_a_file(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file:film.avi").write_bytes(film.read_bytes())
    assert Video("file:film.avi", frames=2).read(shade) == [0, 49]


def test_a_video_cut_short_gives_what_is_there(film: Path, tmp_path: Path) -> None:
    data = film.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) * 6 // 10])
    found = Video(tmp_path / "cut.avi", frames=3).read(shade)
    assert found[0] == 0
    assert len(found) == 3
    assert 10 < found[-1] < 49


def test_without_opencv_the_extra_is_named(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingPackageError, match=r"laco-deploy\[video\]"):
        Video(film).read(shade)
    assert len(Video([np.zeros((2, 2, 3), np.uint8)]).read(shade)) == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_of_any_byte_gives_frames_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, film: Path, data: st.DataObject
) -> None:
    damaged = bytearray(film.read_bytes()[:6000])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.avi"
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(ImageError):
        assert Video(path, frames=2).read(shade)
