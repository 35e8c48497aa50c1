"""Whatever a user gives as an image becomes upright RGB, or an error that says what is wrong."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from laco_runtimes import images as images_module
from laco_runtimes.errors import ImageError, ImageFileNotFoundError
from laco_runtimes.images import Preprocessing, load_image, preprocess

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def pixels(source: object) -> list[list[tuple[int, ...]]]:
    image = load_image(source)  # type: ignore[arg-type]
    assert image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


TWO_BY_TWO = np.array([[RED, (0, 255, 0)], [(0, 0, 255), (9, 8, 7)]], np.uint8)


def test_path_text_bytes_array_and_pil_image_give_the_same_pixels(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(TWO_BY_TWO))
    path = tmp_path / "two.png"
    path.write_bytes(data)
    for source in (path, str(path), data, memoryview(data), TWO_BY_TWO, Image.open(path)):
        assert np.array_equal(load_image(source), TWO_BY_TWO)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_saved(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(TWO_BY_TWO)
    assert np.array_equal(load_image(encoded(image, kind, **options)), TWO_BY_TWO)


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (255, 0, 0, 0))
    assert pixels(encoded(rgba)) == [[RED, WHITE]]
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert pixels(half) == [[(255, 127, 127)]]
    assert pixels(Image.new("LA", (1, 1), (0, 0))) == [[WHITE]]


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_colour_declared_transparent_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGB", (1, 1), (0, 0, 0)).convert(mode)
    key: object = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
    assert pixels(encoded(image)) == [[(0, 0, 0)]]
    assert pixels(encoded(image, transparency=key)) == [[WHITE]]


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(TWO_BY_TWO).quantize(4)
    assert image.mode == "P"
    assert pixels(encoded(image)) == [[tuple(p) for p in row] for row in TWO_BY_TWO.tolist()]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_greys_keep_their_range(kind: str) -> None:
    grey = np.array([[0, 256, 32768, 65535]], np.uint16)
    expected = [[(value,) * 3 for value in (0, 1, 128, 255)]]
    assert pixels(encoded(Image.fromarray(grey), kind)) == expected
    if kind == "PNG":
        expected[0][2] = WHITE
        assert pixels(encoded(Image.fromarray(grey), transparency=32768)) == expected


def test_sixteen_bit_colours_keep_their_range() -> None:
    row = b"\0" + struct.pack(">HHH", 65535, 32768, 256)
    assert pixels(png(1, 1, 16, 2, row)) == [[(255, 128, 1)]]


def test_greyscale_becomes_three_equal_channels() -> None:
    assert pixels(encoded(Image.new("L", (1, 1), 77))) == [[(77, 77, 77)]]
    assert pixels(encoded(Image.new("1", (1, 1), 1))) == [[WHITE]]


def test_cmyk_is_converted() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = pixels(encoded(cmyk, "JPEG", quality=100))[4][4]
    assert red > 250
    assert max(green, blue) < 5


def test_sixteen_bit_transparency_is_laid_on_white() -> None:
    clear, red = struct.pack(">HHHH", 0, 0, 0, 0), struct.pack(">HHHH", 65535, 0, 0, 65535)
    assert pixels(png(2, 1, 16, 6, b"\0" + clear + red)) == [[WHITE, RED]]
    grey = struct.pack(">HH", 32768, 65535) + struct.pack(">HH", 0, 0)
    assert pixels(png(2, 1, 16, 4, b"\0" + grey)) == [[(128, 128, 128), WHITE]]


def test_sixteen_bit_greys_are_read_in_either_byte_order() -> None:
    grey = np.array([[0, 256, 32768, 65535]], np.uint16)
    for order in ("<", ">"):
        image = Image.frombytes(
            "I;16" + ("B" if order == ">" else ""), (4, 1), grey.astype(f"{order}u2").tobytes()
        )
        assert pixels(image) == [[(value,) * 3 for value in (0, 1, 128, 255)]]


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_is_turned_and_converted_alike(kind: str) -> None:
    cmyk = Image.new("CMYK", (16, 8), (0, 0, 0, 0))
    cmyk.paste((0, 255, 255, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    options = {"quality": 100} if kind == "JPEG" else {}
    upright = np.asarray(load_image(encoded(cmyk, kind, exif=exif, **options))).astype(int)
    assert np.abs(upright[:, :6] - WHITE).max() < 6
    assert np.abs(upright[:, 10:] - RED).max() < 6


def test_premultiplied_transparency_is_laid_on_white() -> None:
    assert pixels(Image.new("RGBa", (1, 1), (128, 0, 0, 128))) == [[(255, 127, 127)]]
    assert pixels(Image.new("La", (1, 1), (0, 0))) == [[WHITE]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation_is_applied_in_every_format_that_has_it(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (4, 2)), kind, exif=exif)
    assert load_image(data).size == (2, 4)


def test_a_photo_with_further_pictures_in_it_shows_its_first() -> None:
    """MPO, what many phones write for a JPEG with a depth or gain map."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), RED).save(
        buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (2, 2), "white")]
    )
    image = np.asarray(load_image(buffer.getvalue())).astype(int)
    assert image.shape == (8, 8, 3)
    assert np.abs(image - RED).max() < 5


@pytest.mark.parametrize("url", ["http://a.b/c.png", "HTTPS://a.b/c", "data:image/png;base64,aaaa"])
def test_a_url_is_refused_as_one(url: str) -> None:
    with pytest.raises(ImageError, match=r"is a URL.*nothing is downloaded.*give its path"):
        load_image(url)


def test_a_path_that_only_looks_like_a_url_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http:photo.png", "data:photo.png", "c:photo.png"):
        Path(name).write_bytes(encoded(Image.fromarray(TWO_BY_TWO)))
        assert np.array_equal(load_image(name), TWO_BY_TWO)


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_pixels_without_a_fixed_range_are_refused_not_guessed(mode: str) -> None:
    with pytest.raises(ImageError, match=f"mode '{mode}'.*8-bit RGB"):
        load_image(Image.new(mode, (2, 2)))
    if mode == "F":
        with pytest.raises(ImageError, match="8-bit RGB"):
            load_image(encoded(Image.new("F", (2, 2)), "TIFF"))


# How to turn an upright image so that its EXIF orientation undoes it (EXIF 2.32, tag 0x0112).
ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(ORIENTED[orientation](upright))
    data = encoded(Image.fromarray(stored), exif=exif)
    assert np.array_equal(load_image(data), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_data_is_no_reason_to_refuse_an_image() -> None:
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    assert load_image(encoded(Image.new("RGB", (4, 2)), "JPEG", exif=exif)).size == (4, 2)


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (1, 1), colour) for colour in (RED, WHITE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(data) == [[RED]]


@pytest.mark.parametrize("name", ["none.png", ".", "nul\0byte.png"])
def test_a_path_without_a_file_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageFileNotFoundError, match="no image file at") as caught:
        load_image(tmp_path / name)
    assert isinstance(caught.value, FileNotFoundError)
    assert "\0" not in str(caught.value)


def test_a_data_url_is_refused_briefly() -> None:
    with pytest.raises(ImageError, match="cannot be read") as caught:
        load_image("data:image/png;base64," + "A" * 100_000)
    assert len(str(caught.value)) < 400


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission_is_an_image_error(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(Image.fromarray(TWO_BY_TWO)))
    path.chmod(0)
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(path)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "MAX_FILE_BYTES", 10)
    path = tmp_path / "large.png"
    path.write_bytes(bytes(11))
    with pytest.raises(ImageError, match="larger than"):
        load_image(path)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_an_image_cut_short_anywhere_is_damaged(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    for length in (len(whole) // 8, len(whole) // 2, len(whole) * 3 // 4):
        with pytest.raises(ImageError, match=r"damaged or cut short|not an image"):
            load_image(whole[:length])


def test_a_pil_image_whose_file_is_cut_short_is_damaged(tmp_path: Path) -> None:
    whole = encoded(Image.effect_noise((64, 64), 90), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="damaged"):
        load_image(Image.open(tmp_path / "cut.jpg"))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(999)]
)
def test_what_is_no_image_is_refused_without_memory_addresses(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"known format|empty") as caught:
        load_image(data)
    assert "0x" not in str(caught.value)


def test_formats_that_are_not_listed_are_not_decoded() -> None:
    with pytest.raises(ImageError, match="known format"):
        load_image(encoded(Image.fromarray(TWO_BY_TWO), "PPM"))


@pytest.mark.parametrize("side", [12_000, 30_000])
def test_an_image_bomb_is_refused_by_its_header(side: int) -> None:
    bomb = png(side, side, 8, 2, b"")
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="megapixels"):
            load_image(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def test_no_decoder_runs_on_an_image_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", decode)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(ImageError, match="megapixels"):
        load_image(png(12_000, 12_000, 8, 2, b""))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((3, 5, 5), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((1, 5, 5, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_an_array_of_another_shape_or_type_is_refused(array: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError, match=r"\[H, W, 3\]|empty"):
        load_image(array)


@pytest.mark.parametrize("source", [None, 7, object(), [1, 2], {"path": "x"}])
def test_any_other_object_is_refused(source: object) -> None:
    with pytest.raises(ImageError, match="Give a path"):
        load_image(source)  # type: ignore[arg-type]


def test_an_array_that_is_not_contiguous_is_read_as_it_looks() -> None:
    assert np.array_equal(load_image(TWO_BY_TWO[::-1, ::-1]), TWO_BY_TWO[::-1, ::-1])


WHOLE = {
    kind: encoded(Image.fromarray(TWO_BY_TWO).resize((9, 7)), kind)
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_damage_of_any_byte_gives_an_image_or_an_image_error(
    kind: str, data: st.DataObject
) -> None:
    damaged = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert load_image(bytes(damaged)).mode == "RGB"


def keys_cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The bicubic kernel with a = -0.5 (Keys, 1981)."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def weights(old: int, new: int) -> NDArray[np.float64]:
    """[new, old]: antialiased, that is, the kernel widened by the factor of shrinking."""
    factor = old / new
    wide = max(factor, 1.0)
    centres = (np.arange(new) + 0.5) * factor
    kernel = keys_cubic((np.arange(old)[None] + 0.5 - centres[:, None]) / wide)
    return kernel / kernel.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(60, 31), (31, 60), (90, 90), (7, 5), (16, 40)])
def test_preprocess_is_the_formula_in_float64(height: int, width: int) -> None:
    size = 16
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    rgb = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)

    # Along the width first, rounded to bytes in between.
    wide = np.einsum("nw,hwc->hnc", weights(width, size), rgb.astype(np.float64))
    wide = np.clip(np.floor(wide + 0.5), 0, 255)
    square = np.einsum("nh,hwc->nwc", weights(height, size), wide)
    square = np.clip(np.floor(square + 0.5), 0, 255)
    expected = ((square / 255 - mean) / std).transpose(2, 0, 1)[None]  # [1, 3, S, S]

    spec = Preprocessing(image_size=size, mean=mean, std=std)
    result = preprocess(load_image(rgb), spec)
    assert result.shape == (1, 3, size, size)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    # Pillow's fixed-point weights may round a value to its neighbour: one level, and seldom.
    level = 1 / 255 / min(std)
    difference = np.abs(result - expected)
    assert difference.max() < 1.01 * level
    assert (difference > 0.01 * level).mean() < 0.01


def test_preprocess_of_a_full_size_image_only_scales_it() -> None:
    spec = Preprocessing(image_size=2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    result = preprocess(load_image(TWO_BY_TWO), spec)
    assert result[0, :, 0, 0].tolist() == pytest.approx([1, -1, 0], abs=1e-6)
    assert result[0, :, 0, 1].tolist() == pytest.approx([-1, 3, 0], abs=1e-6)
    assert result[0, :, 1, 0].tolist() == pytest.approx([-1, -1, 1], abs=1e-6)
