"""The commands as a user types them: answers, exit codes, one clear message each."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from laco_deploy.cli import run
from laco_export.parity.plan import LARGE
from laco_export.targets import TargetOptions
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


def test_verify_runs_the_engine_when_asked_to(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from laco_runtimes import selftest

    assert laco("verify", bundle, "--run") == 0
    shown = capsys.readouterr().out
    assert "parity at export: 8 of 8 answers identical" in shown
    assert "asked here: on 2 images" in shown

    missed = selftest.SelfTest(2, 0.5, 1.0, 0.1, (0.999, 1e-3, 0.99))
    monkeypatch.setattr(selftest, "run_selftest", lambda *_: missed)
    assert laco("verify", bundle, "--run") == 3
    assert "does not answer as the model did at export" in capsys.readouterr().err


def test_export_writes_a_bundle_that_chats(
    bundle_for: RandomBundles, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.bundles import reused_graphs

    out = tmp_path / "engine"
    arguments = ["--ckpt", bundle_for.checkpoint, "--target", "openvino", "--out", out]
    with reused_graphs(bundle_for.graphs):
        code = laco(
            *("export", *arguments, "--llm-precision", "int8", "--baseline", "external"),
            *("--parity-images", "0", "--keep-source", "--json"),
        )
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert told["precision"] == {
        "vision_encoder": "fp32",
        "embed_tokens": "int8",
        "decoder": "int8",
    }
    assert told["parity"] is None
    assert "as was asked" in told["unverified"]
    assert min(told["peak_bytes"].values()) > 1_000_000
    assert {"write decoder", "compile decoder", "seal"} <= told["seconds"].keys()
    assert (out / "onnx" / "decoder.onnx").exists()
    assert laco("verify", out) == 0
    assert laco("chat", out, "What is it?", "--image", image, "--max-new-tokens", "2") == 0
    assert "unverified" in capsys.readouterr().err


def test_export_shows_every_figure_beside_what_is_asked_for(
    bundle_for: RandomBundles, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from laco_deploy import exporting, parity_data
    from laco_export.exporter import ExportResult

    manifest = bundle_for.manifest("openvino")
    result = ExportResult(bundle_for("openvino"), manifest, {"seal": 1.0}, {"seal": 1 << 30}, 2.5)
    asked: dict[str, object] = {}

    def export_checkpoint(*_: object, **options: object) -> object:
        asked.update(options)
        return result

    monkeypatch.setattr(exporting, "export_checkpoint", export_checkpoint)
    monkeypatch.setattr(exporting, "default_plan", lambda _: LARGE)
    monkeypatch.setattr(
        parity_data, "parity_samples", lambda *given: asked.update(images=given[2:]) or []
    )
    monkeypatch.setenv("COLUMNS", "200")
    code = laco(
        *("export", "--ckpt", "ckpt", "--target", "openvino", "--out", "engine"),
        *(
            "--precision",
            "int8",
            "--vision-precision",
            "fp32",
            "--baseline",
            "external,uncompressed",
        ),
        *("--layout", "one", "--layout", "two", "--context", "512", "--decoder", "static"),
    )
    shown = capsys.readouterr().out
    assert code == 0
    assert "8 of 8 answers identical" in shown
    assert re.search(r"vision_encoder +visual token cosine, min +1 +≥ 0.99999 +met", shown)
    assert (asked["images"], asked["plan"]) == ((None, LARGE), LARGE)
    assert asked["precision"] == "int8"
    assert (asked["vision_precision"], asked["llm_precision"]) == ("fp32", None)
    assert asked["baselines"] == ("external", "uncompressed")
    assert asked["options"] == TargetOptions(("one", "two"), 512, "static")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int3"], "unknown precision 'int3'"),
        (["--precison", "int8"], "Unknown option: --precison"),
        (["--parity-images", "5"], "5 images are too few"),
        (["--layout", "genai"], "unknown layout for openvino"),
        (["--context", "100"], "takes no context"),
        (["--calibration", "nowhere"], "is no folder"),
    ],
)
def test_a_wrong_option_of_export_ends_with_code_2(
    bundle_for: RandomBundles,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    out = tmp_path / "engine"
    fixed = ["--ckpt", bundle_for.checkpoint, "--target", "openvino", "--out", out]
    assert laco("export", *fixed, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


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
