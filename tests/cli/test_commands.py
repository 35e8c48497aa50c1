"""The commands as a user types them: answers, exit codes, one clear message each."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from laco_deploy.cli import run
from tests.bundles import RandomBundles


def laco(*arguments: str | Path) -> int:
    return run([str(argument) for argument in arguments])


@pytest.fixture
def bundle(bundle_for: RandomBundles) -> Path:
    return bundle_for("onnxruntime")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_chat_prints_the_answer_alone_on_standard_output(
    bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from laco_deploy import Pipeline

    expected = Pipeline(bundle).chat(image, "What is it?", max_new_tokens=8).text
    assert laco("chat", bundle, "What is it?", "--image", image, "--max-new-tokens", "8") == 0
    output = capsys.readouterr()
    assert output.out == f"{expected}\n"
    assert "16 visual" in output.err


def test_chat_without_a_prompt_answers_line_by_line(
    bundle: Path,
    image: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    lines = tmp_path / "lines"
    lines.write_text("What is it?\nWhere?\n")
    with lines.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert laco("chat", bundle, "--image", image, "--max-new-tokens", "1", "--no-stats") == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_verify_and_info_describe_a_bundle(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert laco("verify", bundle) == 0
    assert "all as the manifest says" in capsys.readouterr().out
    assert laco("info", bundle) == 0
    assert "laco 2x2 after block 1" in capsys.readouterr().out
    assert laco("info", bundle, "--json") == 0
    assert json.loads(capsys.readouterr().out)["target"] == "onnxruntime"


def test_export_writes_a_bundle_that_chats(
    bundle_for: RandomBundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.bundles import reused_graphs

    out = tmp_path / "engine"
    with reused_graphs(bundle_for("onnxruntime")):
        code = laco("export", "--ckpt", bundle_for.checkpoint, "--target", "openvino", "--out", out)
    assert code == 0
    assert "parity on openvino: 18 of 18" in capsys.readouterr().out
    assert laco("verify", out) == 0


def _truncated(path: Path, image: Path) -> None:
    path.write_bytes(image.read_bytes()[:200])


def _huge(path: Path, image: Path) -> None:
    """A PNG that claims 30,000 x 30,000 pixels in its header."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "there is no image file"),
        (_truncated, "damaged or cut short"),
        (lambda path, image: path.write_text("hello"), "not an image in a known format"),
        (lambda path, image: path.write_bytes(b""), "is empty"),
        (_huge, "megapixels"),
    ],
)
def test_bad_images_end_with_code_1_and_one_message(
    bundle: Path,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: object,
    message: str,
) -> None:
    bad = tmp_path / "bad.png"
    if callable(damage):
        damage(bad, image)
    assert laco("chat", bundle, "What is it?", "--image", bad) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_empty_prompt_ends_with_code_2(
    bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert laco("chat", bundle, "  ", "--image", image) == 2
    assert "prompt is empty" in capsys.readouterr().err


def test_a_changed_byte_ends_with_code_1(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(bundle, copy)
    weights = copy / "onnx" / "decoder.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    assert laco("verify", copy) == 1
    assert "decoder.onnx.data" in capsys.readouterr().err


def test_unknown_target_names_the_nearest_and_writes_nothing(
    bundle_for: RandomBundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engine"
    code = laco("export", "--ckpt", bundle_for.checkpoint, "--target", "openvin", "--out", out)
    assert code == 2
    assert "Did you mean 'openvino'?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_without_weights_is_refused_and_writes_nothing(
    bundle_for: RandomBundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt, out = tmp_path / "ckpt", tmp_path / "engine"
    shutil.copytree(bundle_for.checkpoint, ckpt)
    (ckpt / "model.safetensors").unlink()
    assert laco("export", "--ckpt", ckpt, "--target", "openvino", "--out", out) == 1
    assert "holds no weights" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


@pytest.mark.parametrize(
    "arguments", [["--recipe", "tin"], ["--recipe", "micro", "--steps", "x"], ["--reciep", "tiny"]]
)
def test_wrong_arguments_end_with_code_2(arguments: list[str]) -> None:
    assert laco("train", *arguments, "--out", "x") == 2


def test_unknown_verb_ends_with_code_2() -> None:
    assert laco("exprot") == 2


@pytest.mark.parametrize("verb", ["train", "export", "chat", "bench", "verify", "info"])
def test_help_shows_an_example_and_the_exit_codes(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert laco(verb, "--help") == 0
    text = capsys.readouterr().out
    assert f"laco {verb} " in text
    assert "Exit codes" in text


def test_root_help_lists_every_verb_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert laco("--help") == 0
    text = capsys.readouterr().out
    for verb in ("train", "export", "chat", "bench", "verify", "info"):
        line = next(line for line in text.splitlines() if f" {verb} " in line)
        assert len(line.strip("│ ").split()) > 3
