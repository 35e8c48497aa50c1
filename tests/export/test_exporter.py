"""From a checkpoint to a sealed bundle, and every way not to get one."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import laco_export
from laco_deploy.exporting import build_job, export_checkpoint
from laco_deploy.model.checkpoint import Checkpoint
from laco_export.exporter import export_bundle
from laco_export.job import ExportJob, ParitySample
from laco_export.parity.verdict import STAGES
from laco_export.targets import TargetOptions
from laco_runtimes.bundle import open_bundle
from laco_runtimes.errors import ArgumentError, ExportError, LacoError, MissingPackageError
from laco_runtimes.images import preprocess
from laco_runtimes.pipeline import Pipeline
from laco_runtimes.prompt import encode_text, load_tokenizer
from tests.bundles import PLAN, RandomBundles, random_samples, reused_graphs

ENGINES = ("onnxruntime", "openvino")


@pytest.fixture
def retarget(job: ExportJob) -> ExportJob:
    """A job that goes fast: no baselines, and graphs that `reused_graphs` copies."""
    return replace(job, target="openvino")


@pytest.fixture
def source(bundle_for: RandomBundles) -> Path:
    return bundle_for("onnxruntime")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("target", ENGINES)
def test_a_bundle_holds_graphs_facts_and_parity(bundle_for: RandomBundles, target: str) -> None:
    manifest = open_bundle(bundle_for(target)).manifest
    assert manifest == bundle_for.manifest(target)
    assert manifest.target == target
    assert manifest.precision == {
        "vision_encoder": "fp32",
        "embed_tokens": "fp32",
        "decoder": "fp32",
    }
    names = [(one.name, one.tokens_per_tile, one.latency_only) for one in manifest.variants]
    assert names == [
        *(("laco", 16, False), ("uncompressed", 64, True)),
        *(("external", 16, True), ("downsampled", 16, True)),
    ]
    assert [one.after_block for one in manifest.variants[0].mergers] == [1]
    found = manifest.parity
    assert found is not None
    assert (found.images, found.answered_images, found.greedy_tokens) == (8, 8, 16)
    assert found.greedy_identical == 8
    assert found.visual_token_cosine_min >= 0.99999
    assert 0 < found.logits_max_abs_difference <= 1e-3
    assert {check.stage for check in found.checks} == set(STAGES)
    assert found.found("preprocessing", "pixels_max") == 0.0
    assert found.found("onnx", "cache_max") < 1e-3
    assert found.noise is not None
    assert found.noise.threads_cosine_min > 0.99999
    assert {target, "torch", "onnx", "onnxscript", "transformers"} <= set(manifest.versions)


@pytest.mark.parametrize("target", ENGINES)
def test_a_bundle_holds_what_its_target_needs_and_no_fp32_twin_of_it(
    bundle_for: RandomBundles, target: str
) -> None:
    held = set(contents(bundle_for(target)))
    assert held >= {
        *("laco.json", "README.md", "tokenizer.json", "tokenizer_config.json", "config.json"),
        *("generation_config.json", "preprocessor_config.json", "selftest.npz"),
    }
    manifest = bundle_for.manifest(target)
    loaded = {manifest.embed_tokens, manifest.decoder}
    loaded |= {variant.vision_encoder for variant in manifest.variants}
    weights = {name for graph in loaded for name in (f"{graph}.data", graph[:-4] + ".bin")}
    assert loaded <= held
    sources = {name for name in held if name.startswith(("onnx/", "baseline/"))}
    shared = {"onnx/decoder.onnx.data"} if target == "onnxruntime" else set()
    assert sources <= loaded | weights | shared


@pytest.mark.parametrize("target", ENGINES)
def test_a_bundle_does_not_name_the_machine_it_was_made_on(
    bundle_for: RandomBundles, target: str
) -> None:
    folder = bundle_for(target)
    traces = [str(folder.parent).encode(), str(Path(__file__).parents[2]).encode()]
    for name, data in contents(folder).items():
        assert not any(trace in data for trace in traces), name


def test_the_card_states_tokens_parity_and_what_is_not_known(bundle_for: RandomBundles) -> None:
    card = (bundle_for("openvino") / "README.md").read_text()
    assert "after block 1 of 3 | 16 visual tokens per image, from 64 patches |" in card
    assert "| uncompressed (for timing only) | none | 64 visual tokens per image, from 64 " in card
    # Of a smaller image.
    assert "| downsampled (for timing only) | none | 16 visual tokens per image, from 16 " in card
    assert "8 of 8 greedy answers are identical" in card
    assert "pip install 'laco-deploy[openvino]'" in card
    assert "Licence of the weights: not stated" in card


@pytest.mark.parametrize("target", ENGINES)
def test_the_pipeline_answers_as_pytorch_does_on_an_image_never_seen(
    bundle_for: RandomBundles, checkpoint: Checkpoint, job: ExportJob, target: str
) -> None:
    image, prompt = Image.radial_gradient("L").convert("RGB"), "How many dots are there?"
    text = encode_text(load_tokenizer(checkpoint.tokenizer_path), prompt)
    ids = [*job.prompt.system, *job.prompt.turn(text, [16])]
    expected = job.load().reference.greedy(preprocess(image, job.preprocessing), ids, 24)

    reply = Pipeline(bundle_for(target)).chat(image, prompt, max_new_tokens=24)
    assert reply.tokens == expected.tokens
    assert (reply.visual_tokens, reply.prompt_tokens) == (16, len(ids))


def test_progress_goes_from_nothing_to_all(
    retarget: ExportJob, source: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    with reused_graphs(source):
        result = export_bundle(retarget, tmp_path / "engine", lambda *step: told.append(step))
    done = [step[1] for step in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, told[-1][2])
    stages = list(dict.fromkeys(step[0] for step in told))
    assert stages == list(result.seconds)
    assert stages[-2:] == ["parity", "seal"]
    assert result.size_bytes == sum(
        len(data) for name, data in contents(result.path).items() if name != "laco.json"
    )


def test_a_new_export_replaces_an_old_bundle(
    retarget: ExportJob, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "engine"
    shutil.copytree(source, out)
    with reused_graphs(source):
        export_bundle(retarget, out)
    assert open_bundle(out).manifest.target == "openvino"
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("write vision_encoder", KeyboardInterrupt),
        ("compile decoder", ExportError),
        ("parity", KeyboardInterrupt),
        ("seal", OSError),
    ],
)
def test_an_export_that_ends_early_leaves_the_old_bundle(
    retarget: ExportJob, source: Path, tmp_path: Path, stage: str, error: type[BaseException]
) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name == stage:
            raise error("stopped")

    shutil.copytree(source, tmp_path / "engine")
    before = contents(tmp_path)
    with reused_graphs(source), pytest.raises(error, match="stopped"):
        export_bundle(retarget, tmp_path / "engine", stop)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "openvin"}, "unknown target 'openvin'.*onnxruntime.*'openvino'"),
        ({"precision": "fp23"}, "unknown precision 'fp23'.*fp32.*'fp32'"),
        ({"llm_precision": "int3"}, "unknown llm precision 'int3'"),
        ({"vision_precision": "int4"}, "unknown vision precision 'int4'"),
        ({"options": TargetOptions(layouts=("genai",))}, "unknown layout for openvino 'genai'"),
        ({"options": TargetOptions(context=512)}, "openvino grows.*takes no context"),
        ({"options": TargetOptions(flavour="contrib")}, "unknown decoder flavour for openvino"),
        ({"baselines": ["extern"]}, "unknown baseline 'extern'.*'external'"),
        ({"parity_samples": random_samples(15)}, "15 images are too few.*at least 16"),
    ],
)
def test_a_wrong_argument_is_named_before_any_work(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    arguments = {"target": "openvino", "parity_samples": random_samples(64), **options}
    with pytest.raises(ArgumentError, match=message):
        # Before any work: this checkpoint does not even exist.
        export_checkpoint(tmp_path / "nowhere", tmp_path / "engine", **arguments)  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_no_bundle_is_left_alone(retarget: ExportJob, tmp_path: Path) -> None:
    out = tmp_path / "holiday"
    out.mkdir()
    (out / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(ArgumentError, match="not a bundle"):
        export_bundle(retarget, out)
    assert contents(tmp_path) == {"holiday/photo.jpg": b"precious"}


def test_a_missing_package_is_named_with_its_extra(
    retarget: ExportJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'laco-deploy\[openvino\]'"):
        export_bundle(retarget, tmp_path / "engine")


def test_without_the_export_extra_the_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(MissingPackageError, match=r"onnx is not.*'laco-deploy\[export\]'"):
        importlib.reload(laco_export)


def test_a_sample_that_cannot_be_read_costs_no_tracing(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    samples = [*random_samples(), ParitySample("lost", tmp_path / "lost.png", "What is it?")]
    job = build_job(checkpoint, target="openvino", parity_samples=samples, plan=PLAN)
    told: list[str] = []
    with pytest.raises(LacoError, match=r"lost\.png"):
        export_bundle(job, tmp_path / "engine", lambda stage, done, total: told.append(stage))
    assert not told
    assert not any(tmp_path.iterdir())
