"""Models that cut images into tiles or end them with a vector, from the checkpoint to an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from laco_deploy.exporting import build_job
from laco_deploy.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from laco_deploy.model.processing import LacoProcessor
from laco_deploy.training.tokenizer import IMAGE_TOKEN, train_tokenizer
from laco_export.exporter import export_bundle
from laco_export.job import ExportJob
from laco_export.parity.pytorch import pixel_figures
from laco_export.parity.verdict import judge, require
from laco_export.targets import TARGETS, FinishRequest, TargetOptions
from laco_export.targets.openvino_genai import write_genai_files
from laco_runtimes.bundle import Bundle, open_bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import LoadedEngine, LoadRequest
from laco_runtimes.errors import ArgumentError, ParityError
from laco_runtimes.generation import splice
from laco_runtimes.images import Preprocessing
from laco_runtimes.manifest import FORMAT_VERSION, NEWLINE_NAME, ImageLayout
from laco_runtimes.newline import read_newline, write_newline
from laco_runtimes.pipeline import Pipeline
from laco_runtimes.prompt import encode_text, load_tokenizer
from laco_runtimes.selftest import run_selftest
from laco_runtimes.video import Video
from laco_runtimes.visual import VisualSource, arrange, pixel_values, read_visuals
from tests.bundles import IMAGE_SIZE, PLAN, PROMPTS, random_config, random_model, random_samples

SETTINGS = {
    "image_mode": "anyres",
    "image_newline": True,
    "max_tiles": 3,
    "video_pool_stride": 2,
}
QUESTION = "How many dots are there in the picture?"


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint with every setting of the layout in use."""
    tokenizer = train_tokenizer([*PROMPTS, "system user assistant You are a helpful assistant."])
    config = random_config(blocks=2, layers=1, vocab_size=len(tokenizer))
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    for name, value in SETTINGS.items():
        setattr(config, name, value)
    folder = tmp_path_factory.mktemp("tiled") / "checkpoint"
    save_checkpoint(
        folder,
        model=random_model(config, seed=1),
        tokenizer=tokenizer,
        preprocessing=Preprocessing(
            image_size=IMAGE_SIZE, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28)
        ),
    )
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def tiled_job(tiled: Checkpoint) -> ExportJob:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 300, 3), np.uint8))
    samples = random_samples()
    samples[1] = replace(samples[1], image=wide)  # the map of its parts is scaled down
    samples[2] = replace(samples[2], image=wide.resize((40, 30)))
    return build_job(tiled, target="onnxruntime", parity_samples=samples, plan=PLAN)


@pytest.fixture(scope="module")
def bundle(tiled_job: ExportJob, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(export_bundle(tiled_job, tmp_path_factory.mktemp("tiled") / "engine").path)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> LoadedEngine:
    manifest = bundle.manifest
    return load_engine(LoadRequest(bundle.root, manifest, manifest.variants[0], "cpu"))


def test_a_bundle_states_the_layout_and_holds_the_newline(
    bundle: Bundle, tiled: Checkpoint
) -> None:
    manifest = bundle.manifest
    assert manifest.format_version == FORMAT_VERSION == 3
    assert manifest.layout == ImageLayout(
        image_mode="anyres", newline=True, max_tiles=3, video_pool_stride=2
    )
    assert manifest.token_layout(manifest.variants[0]) == tiled.config.token_layout
    vector = tiled.model.model.image_newline
    assert vector is not None
    assert np.array_equal(read_newline(bundle.root, manifest), vector.detach().numpy())  # type: ignore[arg-type]


def test_parity_is_measured_on_tiles_of_the_layout(bundle: Bundle) -> None:
    parity = bundle.manifest.parity
    assert parity is not None
    assert all(check.met for check in parity.checks)
    assert (parity.images, parity.greedy_identical) == (8, 8)
    assert parity.found("preprocessing", "pixels_max") == 0.0
    assert parity.found("onnx", "top1") == 1.0


def test_a_bundle_tests_itself_on_tiles(bundle: Bundle, engine: LoadedEngine) -> None:
    found = run_selftest(engine, bundle.root, bundle.manifest)
    assert found.passed
    assert (found.images, found.top1) == (2, 1.0)


def test_a_wrong_newline_does_not_pass_the_test_of_itself(
    bundle: Bundle, engine: LoadedEngine, tmp_path: Path
) -> None:
    (tmp_path / "selftest.npz").write_bytes((bundle.root / "selftest.npz").read_bytes())
    write_newline(tmp_path, np.full(64, 3, np.float32))
    found = run_selftest(engine, tmp_path, bundle.manifest)
    assert found.cosine_min > 0.99999
    assert not found.passed


def noise(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


SOURCES: dict[str, list[VisualSource]] = {
    "anyres": [noise(130, 60, 1)],
    "scaled down": [noise(60, 400, 2)],
    "three images": [noise(130, 60, 1), noise(60, 60, 2), noise(30, 90, 3)],
    "video": [Video([noise(50, 40, seed) for seed in range(4)])],
}


def trained_batch(checkpoint: Checkpoint, sources: list[VisualSource]) -> Any:
    """What the checkpoint's own processor makes of a question."""
    processor = LacoProcessor.from_pretrained(checkpoint.root, local_files_only=True)
    videos: list[Any] = [one.source for one in sources if isinstance(one, Video)]
    images = [one for one in sources if not isinstance(one, Video)]
    marks = "".join("<video>\n" if isinstance(one, Video) else "<image>\n" for one in sources)
    messages: list[Any] = [{"role": "user", "content": marks + QUESTION}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(images or None, prompt, videos or None, return_tensors="pt")


@pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES)
def test_an_engine_answers_as_the_model(
    bundle: Bundle, engine: LoadedEngine, tiled: Checkpoint, sources: list[VisualSource]
) -> None:
    manifest = bundle.manifest
    layout = manifest.token_layout(manifest.variants[0])
    parts = read_visuals(sources, manifest.preprocessing, layout)
    newline = read_newline(bundle.root, manifest)
    visual = [
        arrange(
            engine.vision.encode(pixel_values(part.squares, manifest.preprocessing)),
            part,
            layout,
            newline,
        )
        for part in parts
    ]
    text = encode_text(load_tokenizer(bundle.tokenizer), QUESTION)
    turn = manifest.prompt.turn(text, [part.tokens for part in parts])
    ids = [*manifest.prompt.system, *turn]
    image_token = manifest.prompt.image_token_id
    embeds = splice(engine.language.embed(ids), ids, np.concatenate(visual), image_token)
    engine.language.rewind(0)
    found = engine.language.prefill(embeds)

    batch = trained_batch(tiled, sources)
    assert batch["input_ids"].tolist() == [ids]
    with torch.no_grad():
        expected = tiled.model(**batch).logits[0, -1].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_a_pipeline_says_what_transformers_generates(
    bundle: Bundle, tiled: Checkpoint, kind: str
) -> None:
    pipe = Pipeline(bundle.root if kind == "bundle" else tiled.root, device="cpu")
    for name, sources in SOURCES.items():
        reply = pipe.chat(sources, QUESTION, max_new_tokens=12)
        batch = trained_batch(tiled, sources)
        prompt = batch["input_ids"].shape[1]
        answer = tiled.model.generate(
            **batch,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=list(bundle.manifest.prompt.stop),
            pad_token_id=0,
        )
        assert list(reply.tokens) == answer[0, prompt:].tolist(), name
        assert reply.prompt_tokens == prompt
        image_token = bundle.manifest.prompt.image_token_id
        assert reply.visual_tokens == int((batch["input_ids"] == image_token).sum())


def test_pixels_of_another_layout_are_found_out(tiled_job: ExportJob) -> None:
    square = replace(tiled_job, layout=ImageLayout(newline=True))
    figures = pixel_figures(tiled_job.load().reference, square)
    assert figures.values["pixels_max"] == float("inf")
    assert figures.worst["pixels_max"] == "image 1"
    with pytest.raises(ParityError, match=r"checkpoint's processor differ.*is no number"):
        require(judge("preprocessing", figures, {"pixels_max": ("at most", 1e-6)}), "openvino")


@pytest.mark.parametrize("images", [{"image_mode": "anyres"}, {"newline": True}])
def test_a_folder_for_another_runtime_is_refused_before_anything_is_made(
    tiled_job: ExportJob, tmp_path: Path, images: dict[str, Any]
) -> None:
    layout = TARGETS["onnxruntime"].layouts[0]
    asked = replace(
        tiled_job, layout=ImageLayout(**images), options=TargetOptions(layouts=(layout,))
    )
    with pytest.raises(ArgumentError, match=rf"layout {layout} is for a runtime.*one tile"):
        export_bundle(asked, tmp_path / "engine")
    assert not any(tmp_path.iterdir())


def test_openvino_genai_is_not_led_to_answer_on_other_tokens(
    tiled_job: ExportJob, bundle: Bundle, tmp_path: Path
) -> None:
    write_genai_files(
        FinishRequest(
            root=tmp_path,
            facts=bundle.manifest,
            variants=bundle.manifest.variants,
            preprocessing=tiled_job.preprocessing,
            layout=tiled_job.layout,
            prompt=tiled_job.prompt,
        )
    )
    assert not any(tmp_path.iterdir())


def test_the_card_tells_how_images_are_shown(bundle: Bundle) -> None:
    card = (bundle.root / "README.md").read_text()
    assert "| 16 visual tokens per tile, from 64 patches |" in card
    assert "about 3 tiles' tokens are kept; among others: one tile, with `image_newline`" in card


def test_the_newline_is_in_the_list_of_files(bundle: Bundle) -> None:
    assert NEWLINE_NAME in {entry.path for entry in bundle.manifest.files}
