"""`laco init` and `laco info` on checkpoints: what they write, print and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from laco_deploy.cli import run
from laco_deploy.cli.init import block_number, read_mergers
from laco_deploy.model import parts
from laco_deploy.model.checkpoint import load_checkpoint
from laco_deploy.model.presets import LANGUAGE_PRESETS, VISION_PRESETS, Preset
from laco_runtimes.errors import ArgumentError, ConfigError
from tests.model.composing import write_language_model, write_vision
from tests.model.published_folders import WEIGHTS
from tests.model.tower_samples import BLOCKS, vision_config

ROOT = Path(__file__).parents[2]


def laco(*arguments: str | Path) -> int:
    return run([str(argument) for argument in arguments])


@pytest.fixture
def sources(tmp_path: Path) -> list[str | Path]:
    """`--vision` and `--llm` with folders of tiny published models."""
    folder = tmp_path / "sources"
    write_vision(folder / "vision", "siglip_vision_model")  # 9 x 9 patches
    write_language_model(folder / "llm")
    return ["--vision", folder / "vision", "--llm", folder / "llm"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return " ".join((output.out + output.err).split())


def test_init_composes_published_folders_into_a_checkpoint(
    sources: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ckpt"
    assert laco("init", *sources, "--after-block", "2", "--out", out) == 0
    text = said(capsys)
    assert "25 of 81" in text
    assert "after block 2 the grid is 9x9, no multiple of 2: it is padded" in text
    assert "to 10x10" in text
    checkpoint = load_checkpoint(out)
    assert checkpoint.config.merger_specs[0].after_block == 2
    assert checkpoint.preprocessing.mean == (0.5, 0.5, 0.5)
    assert checkpoint.preprocessing.image_size == 64


def test_init_without_a_block_merges_after_a_quarter(
    sources: list[str | Path], tmp_path: Path
) -> None:
    assert laco("init", *sources, "--out", tmp_path / "ckpt") == 0
    specs = load_checkpoint(tmp_path / "ckpt").config.merger_specs
    assert [spec.after_block for spec in specs] == [max(BLOCKS // 4, 1)]


def test_init_takes_several_mergers_and_their_settings(
    sources: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--after-block", "1", "3", "--ratio", "3", "--ratio", "2"]  # in one go, repeated
    arguments += ["--merger", "pixel_shuffle", "--shortcut", "window_mean", "--odd-grid", "crop"]
    out = tmp_path / "ckpt"
    assert laco("init", *sources, *arguments, "--image-mode", "anyres", "--out", out) == 0
    config = load_checkpoint(out).config
    assert [(s.after_block, s.ratio) for s in config.merger_specs] == [(1, 3), (3, 2)]
    assert {(s.kind, s.shortcut, s.odd_grid) for s in config.merger_specs} == {
        ("pixel_shuffle", "window_mean", "crop")
    }
    assert config.tokens_per_tile == 1  # 9 -> 3 -> 1
    assert (config.image_mode, config.image_newline) == ("anyres", True)
    assert "the grid is 3x3, no multiple of 2: it is cropped to 2x2" in said(capsys)


def test_init_with_presets_and_random_weights_needs_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = vision_config("aimv2_vision_model")
    settings = {
        name: getattr(config, name)
        for name in (
            *("hidden_size", "intermediate_size", "num_attention_heads", "image_size"),
            "patch_size",
        )
    }

    def preset(name: str, config_class: Any, settings: dict[str, Any]) -> dict[str, Preset]:
        return {
            name: Preset(
                name=name,
                hub_id=f"some/{name}",
                parameters=0,
                config_class=config_class,
                settings=settings,
                blocks=3,
                published_blocks=3,
            )
        }

    text = parts.LANGUAGE_PRESETS["qwen2.5-0.5b"]
    small = {"hidden_size": 28, "intermediate_size": 32, "num_attention_heads": 14}
    monkeypatch.setattr(parts, "VISION_PRESETS", preset("tower", type(config), settings))
    monkeypatch.setattr(
        parts, "LANGUAGE_PRESETS", preset("llm", text.config_class, {**text.settings, **small})
    )
    out = tmp_path / "ckpt"
    arguments = ["--vision", "tower", "--llm", "llm", "--random-weights", "--out", out]
    assert laco("init", *arguments) == 0
    assert "for speed only" in said(capsys)
    checkpoint = load_checkpoint(out)
    assert checkpoint.config.text.vocab_size == 151_936  # so that the last layer takes its time
    card = (out / "README.md").read_text()
    assert "Random weights: for speed only" in card
    assert "small byte-level" in card
    assert "base_model" not in card
    ids = torch.tensor([[*checkpoint.template.turn([40, 41], [16])]])
    pixels = torch.zeros(1, 3, 56, 56)
    with torch.no_grad():
        assert checkpoint.model(input_ids=ids, pixel_values=pixels).logits.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--after-block", "1/3"], 2, "of 3 blocks it comes to block 1. Give the number"),
        (["--after-block", "4"], 2, "the encoder has 3 blocks. Choose 1 to 3"),
        (["--after-block", "0"], 2, "Blocks are counted from 1"),
        (["--ratio", "5"], 2, "ratio is 5"),
        (["--merger", "lacco"], 2, "Did you mean 'laco'?"),
        (["--shortcut", "window"], 2, "Did you mean 'window_mean'?"),
        (["--odd-grid", "none"], 2, "9x9, no multiple of 2, and --odd-grid is none"),
        (["--blocks", "4"], 2, "Choose 1 to 3"),
        (["--merger", "none", "--after-block", "1"], 2, "no merger, but settings"),
        (
            ["--after-block", "1", "--after-block", "2", "--merger", "laco"] + ["--ratio", "2"] * 3,
            2,
            "--ratio is given 3 times for 2 mergers",
        ),
        (["--tokenizer", "nowhere"], 1, "holds no tokenizer.json"),
        (["--image-mode", "tiles"], 2, "anyres"),
        (["--video-pool-stride", "0"], 2, "video_pool_stride is 0"),
    ],
)
def test_wrong_options_end_with_one_message_and_write_nothing(
    sources: list[str | Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert laco("init", *sources, *arguments, "--out", tmp_path / "ckpt") == code
    assert message in said(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["sources"]


def test_a_preset_alone_ends_with_code_1_and_says_what_to_give(
    sources: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ckpt"
    assert laco("init", *sources[:2], "--llm", "qwen2.5-0.5b", "--out", out) == 1
    text = said(capsys)
    assert "preset 'qwen2.5-0.5b' holds settings, no weights" in text
    assert "--random-weights" in text
    assert not out.exists()


def test_a_folder_that_is_no_checkpoint_is_left_alone(
    sources: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    assert laco("init", *sources, "--out", tmp_path / "notes") == 1
    assert "left alone" in said(capsys)
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["text"]


@pytest.mark.parametrize("inside", ["llm", "vision", "."])
def test_published_folders_are_never_replaced(
    sources: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    (tmp_path / "sources" / "config.json").write_text("{}")
    before = sorted((tmp_path / "sources").rglob("*"))
    assert laco("init", *sources, "--out", tmp_path / "sources" / inside) == 2
    assert "which the model is made from" in said(capsys)
    assert sorted((tmp_path / "sources").rglob("*")) == before


def test_a_folder_of_damaged_weights_leaves_the_old_checkpoint(
    sources: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ckpt"
    assert laco("init", *sources, "--out", out) == 0
    before = (out / WEIGHTS).read_bytes()
    weights = Path(sources[1]) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    assert laco("init", *sources, "--after-block", "2", "--out", out) == 1
    assert "damaged" in said(capsys)
    assert (out / WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "sources"]


@pytest.mark.parametrize(
    ("text", "blocks", "message"),
    [
        ("1/4", 24, "of 24 blocks it comes to block 6"),
        ("0.25", 24, "of 24 blocks it comes to block 6"),
        ("1/4", 26, "between blocks 6 and 7. Give the number: --after-block 6"),
        ("1/12", 4, "of 4 blocks it comes to block 1."),
        ("two", 24, "'two' is no number. Give that of a block, 1 to 24"),
        ("1/0", 24, "is no number"),
        ("-1/4", 24, "names no block"),
        ("5/4", 24, "names no block"),
    ],
)
def test_a_fraction_is_refused_with_the_block_it_comes_to(
    text: str, blocks: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        block_number(text, blocks)
    assert message in str(caught.value)


def test_options_given_once_hold_for_every_merger() -> None:
    specs = read_mergers(
        ("ldpv2", "laco"), ("6", "12"), (2,), (), (), odd_grid="replicate", blocks=24
    )
    assert [(spec.kind, spec.after_block, spec.ratio) for spec in specs] == [
        ("ldpv2", 6, 2),
        ("laco", 12, 2),
    ]
    with pytest.raises(ArgumentError, match="--after-block is given 1 times for 2 mergers"):
        read_mergers(("ldpv2", "laco"), ("6",), (2,), (), (), odd_grid="crop", blocks=24)
    assert read_mergers(("none",), (), (2,), (), (), odd_grid="crop", blocks=24) == []


def test_help_shows_examples_exit_codes_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert laco("init", "--help") == 0
    text = capsys.readouterr().out
    assert "laco init --vision aimv2-large-448" in text
    assert "Exit codes" in text
    for name in (*VISION_PRESETS, *LANGUAGE_PRESETS):
        assert name in text
    assert laco("--help") == 0
    assert " init " in capsys.readouterr().out


# laco info


def test_info_describes_a_checkpoint_without_its_weights(
    sources: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ckpt"
    assert laco("init", *sources, "--after-block", "1", "--out", out) == 0
    (out / WEIGHTS).unlink()
    capsys.readouterr()
    assert laco("info", out) == 0
    text = said(capsys)
    for fact in ("laco 2x2 after block 1 (9x9 to 5x5", "25 of 81", "GFLOP", "LaCo@1"):
        assert fact in text
    assert laco("info", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["mergers"][0]["after_block"] == 1
    assert facts["tokens_per_tile"] == 25
    assert 0 < facts["encoder_ratio_to_behind_encoder"] < 1
    total = facts["parameters"].pop("total")
    assert total == sum(facts["parameters"].values())


def test_info_of_the_shipped_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert laco("info", ROOT / "samples" / "laco-tiny") == 0
    assert "after block 1" in said(capsys)


def test_info_of_neither_bundle_nor_checkpoint_ends_with_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert laco("info", tmp_path / "nowhere") == 1
    assert "does not exist" in said(capsys)
    assert laco("info", tmp_path) == 1
    assert "holds no bundle" in said(capsys)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert laco("info", tmp_path) == 1
    assert "model type 'bert'" in said(capsys)


def test_info_on_a_bundle_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "laco.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")  # a bundle has one as well
    code = (
        f"import sys\nsys.path[:0] = {[str(ROOT / 'export'), str(ROOT / 'runtimes')]!r}\n"
        "from laco_deploy.cli import run\n"
        f"code = run(['info', {str(tmp_path)!r}])\n"
        "print(code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "1 False False", done.stderr
    assert "manifest" in done.stderr


@pytest.mark.full
def test_init_at_full_size_writes_a_model_that_answers(tmp_path: Path) -> None:
    out = tmp_path / "ckpt"
    arguments = ["--vision", "aimv2-large-448", "--llm", "qwen2.5-0.5b", "--random-weights"]
    assert laco("init", *arguments, "--after-block", "6", "--out", out) == 0
    checkpoint = load_checkpoint(out)
    sizes = sum(weight.numel() for weight in checkpoint.model.parameters())
    assert sizes == 309_984_256 + 494_032_768 + 5_253_120 + 1024 * 896 + 896 * 896 + 2 * 896
    ids = torch.tensor([[*checkpoint.template.turn([40, 41], [256])]])
    with torch.no_grad():
        logits = checkpoint.model(input_ids=ids, pixel_values=torch.zeros(1, 3, 448, 448)).logits
    assert logits.shape[-1] == 151_936
    assert logits.isfinite().all()
