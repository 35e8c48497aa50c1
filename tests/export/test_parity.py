"""The ladder of comparisons finds what it is there to find, and says on which rung."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.model.checkpoint import Checkpoint
from laco_deploy.module_source import ModuleSource
from laco_deploy.torch_reference import TorchReference
from laco_export.exporter import export_bundle
from laco_export.job import ExportJob, Modules
from laco_export.parity import questions
from laco_export.parity.answers import Answers, ask_engine
from laco_export.parity.engine import compare_baseline, compare_engine
from laco_export.parity.measures import Figures, language_figures, visual_figures
from laco_export.parity.plan import LARGE, MIN_IMAGES, ParityPlan, check_images, plan_for
from laco_export.parity.pytorch import pixel_figures
from laco_export.parity.questions import QuestionSet
from laco_export.parity.reference import ReferenceResult
from laco_export.parity.selftest import write_selftest
from laco_export.parity.thresholds import ROWS, language_row, visual_row
from laco_export.parity.verdict import judge, require
from laco_export.precision import LLM_PRECISIONS, VISION_PRECISIONS, Precisions
from laco_export.protocols import Floats
from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import LoadedEngine, LoadRequest
from laco_runtimes.errors import ArgumentError, BundleError, ContextLengthError, ParityError
from laco_runtimes.selftest import SELFTEST_NAME, run_selftest
from tests.bundles import RandomBundles, reused_graphs

EXACT = Precisions("fp32", "fp32")
Edit = Callable[[LacoForConditionalGeneration], None]
RANDOM = np.random.default_rng(0)


def edit_merger(model: LacoForConditionalGeneration) -> None:
    model.model.vision_encoder.mergers["1"].linear_2.bias[0] += 2.0


def edit_decoder(model: LacoForConditionalGeneration) -> None:
    model.model.language_model.norm.weight[0] += 0.01


def edited(job: ExportJob, checkpoint: Checkpoint, edit: Edit) -> ExportJob:
    """A job whose PyTorch model is another one than its graphs are written from."""
    modules = ModuleSource(checkpoint.root)()
    model = copy.deepcopy(checkpoint.model)
    with torch.no_grad():
        edit(model)
    held = modules.reference
    assert isinstance(held, TorchReference)
    other = TorchReference(model, held.images)
    return replace(job, load=lambda: Modules(modules.encoders, modules.body, modules.head, other))


@pytest.fixture(scope="module")
def engine(bundle_for: RandomBundles) -> LoadedEngine:
    bundle = open_bundle(bundle_for("openvino"))
    manifest = bundle.manifest
    return load_engine(LoadRequest(bundle.root, manifest, manifest.variants[0], "auto"))


@pytest.fixture(scope="module")
def asked(
    checkpoint: Checkpoint, job: ExportJob, tmp_path_factory: pytest.TempPathFactory
) -> QuestionSet:
    folder = tmp_path_factory.mktemp("questions") / "squares"
    few = replace(job, parity_samples=job.parity_samples[:3])
    return questions.prepare(few, checkpoint.root, folder)


@pytest.fixture(scope="module")
def reference(
    engine: LoadedEngine, asked: QuestionSet, tmp_path_factory: pytest.TempPathFactory
) -> ReferenceResult:
    """What the engine itself says: it is within every limit of it."""
    folder = tmp_path_factory.mktemp("answers") / "reference"
    return ReferenceResult(ask_engine(engine, asked, folder, lambda: None), ())


def changed(
    reference: ReferenceResult, folder: Path, name: str, change: Callable[[Floats], Floats]
) -> ReferenceResult:
    """The same answers but for one array."""
    folder.mkdir()
    for one in ("features", "logits", "tokens"):
        array = np.load(reference.answers.folder / f"{one}.npy")
        np.save(folder / f"{one}.npy", change(array) if one == name else array)
    return replace(reference, answers=Answers(folder))


def noisy(scale: float) -> Callable[[Floats], Floats]:
    return lambda array: array + RANDOM.normal(0, scale, array.shape).astype(np.float32)


def test_an_engine_is_as_its_reference(
    asked: QuestionSet, engine: LoadedEngine, reference: ReferenceResult, tmp_path: Path
) -> None:
    told: list[int] = []
    parity = compare_engine(
        asked, engine, EXACT, reference, tmp_path / "engine", lambda: told.append(1)
    )
    assert len(told) == parity.images == parity.greedy_identical == 3
    assert all(check.met for check in parity.checks)
    assert (parity.prompts, parity.adversarial_images, parity.ties) == (3, 0, 0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "features",
            noisy(0.5),
            r"the visual tokens of openvino.*cosine, min, is 0\.9.*at least 0\.99999",
        ),
        ("features", lambda a: a * float("nan"), r"visual token cosine, min, is no number"),
        ("logits", noisy(0.1), r"the answers of openvino.*logits, max difference, is 0\.\d"),
    ],
)
def test_a_miss_names_the_rung_the_figure_and_the_image(
    asked: QuestionSet,
    engine: LoadedEngine,
    reference: ReferenceResult,
    tmp_path: Path,
    name: str,
    change: Callable[[Floats], Floats],
    message: str,
) -> None:
    job = replace(asked.job, target="openvino")
    other = changed(reference, tmp_path / "other", name, change)
    with pytest.raises(ParityError, match=message) as caught:
        compare_engine(
            replace(asked, job=job), engine, EXACT, other, tmp_path / "engine", lambda: None
        )
    assert caught.value.exit_code == 3
    assert "(image " in str(caught.value)


def test_a_baseline_of_other_weights_is_found_out(
    checkpoint: Checkpoint, engine: LoadedEngine, asked: QuestionSet, tmp_path: Path
) -> None:
    model = copy.deepcopy(checkpoint.model)
    pixels = np.concatenate([asked.pixel_values(index) for index in range(2)])

    def save(name: str) -> Path:
        with torch.no_grad():
            features = model.get_image_features(torch.from_numpy(pixels))
        np.save(tmp_path / name, features.numpy())
        return tmp_path / name

    assert compare_baseline(asked, engine, EXACT, save("same.npy"))
    with torch.no_grad():
        edit_merger(model)
    with pytest.raises(ParityError, match="visual tokens"):
        compare_baseline(asked, engine, EXACT, save("other.npy"))


@pytest.mark.parametrize("edit", [edit_merger, edit_decoder])
def test_graphs_that_differ_from_pytorch_are_found_before_anything_is_compiled(
    bundle_for: RandomBundles, checkpoint: Checkpoint, job: ExportJob, tmp_path: Path, edit: Edit
) -> None:
    told: list[str] = []
    with (
        reused_graphs(bundle_for.graphs),
        pytest.raises(ParityError, match="the fp32 graphs and PyTorch differ"),
    ):
        export_bundle(
            edited(job, checkpoint, edit),
            tmp_path / "engine",
            lambda stage, done, total: told.append(stage),
        )
    assert not any(stage.startswith("compile") for stage in told)
    assert not any(tmp_path.iterdir())


def test_pixels_of_another_processor_are_found_out(job: ExportJob) -> None:
    darker = replace(job, preprocessing=replace(job.preprocessing, mean=(0.5, 0.46, 0.41)))
    reference = job.load().reference
    assert pixel_figures(reference, job).values == {"pixels_max": 0.0}
    figures = pixel_figures(reference, darker)
    assert figures.values["pixels_max"] > 0.01
    message = r"checkpoint's processor differ.*pixel value, max difference, is 0\.07"
    with pytest.raises(ParityError, match=message):
        require(judge("preprocessing", figures, {"pixels_max": ("at most", 1e-6)}), "openvino")


def answers(*best: tuple[int, float]) -> Floats:
    """Logits of one answer over ten tokens: each best token leads the next id by a margin."""
    logits = np.zeros((1, len(best), 10), np.float32)
    for place, (token, margin) in enumerate(best):
        logits[0, place, token] = 5 + margin
        logits[0, place, (token + 1) % 10] = 5
    return logits


def language(theirs: Floats, ours: Floats, tie_margin: float = 1e-4) -> Figures:
    return language_figures(theirs, ours, [theirs.shape[1]], ["it"], tie_margin=tie_margin)


def test_the_first_other_token_ends_the_agreement_of_a_free_run() -> None:
    theirs = answers((1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0))
    ours = answers((1, 1.0), (2, 1.0), (8, 1.0), (4, 1.0))
    figures = language(theirs, ours)
    assert figures.values["fdt"] == 0.5
    assert figures.values["top1"] == 0.75
    assert figures.values["exact"] == figures.identical == 0
    assert language(theirs, theirs).values["exact"] == 1.0


def test_another_token_at_a_tie_agrees_and_is_counted() -> None:
    theirs, ours = answers((1, 1.0), (2, 5e-5)), answers((1, 1.0), (3, 5e-5))
    figures = language(theirs, ours)
    assert (figures.values["top1"], figures.values["exact"], figures.values["fdt"]) == (1, 1, 1)
    assert (figures.ties, figures.identical) == (1, 0)
    assert language(theirs, ours, tie_margin=1e-5).values["top1"] == 0.5


def test_the_rule_of_five_wants_each_token_among_the_best_of_the_other() -> None:
    theirs = answers((1, 1.0))
    near, far = theirs.copy(), theirs.copy()
    near[0, 0, 2] = 7.0  # the reference's second
    far[0, 0, [7, 8, 9, 4, 5, 6]] = 7.0  # none of which the reference cares for
    assert language(theirs, near).values["top5"] == 1.0
    assert language(theirs, far).values["top5"] == 0.0


def test_the_divergence_is_that_of_the_distributions() -> None:
    theirs, ours = (RANDOM.normal(size=(1, 4, 30)).astype(np.float32) for _ in range(2))
    one, other = (torch.log_softmax(torch.from_numpy(x[0]).double(), -1) for x in (theirs, ours))
    expected = torch.nn.functional.kl_div(other, one, log_target=True, reduction="none").sum(-1)
    assert language(theirs, ours).values["kl_mean"] == pytest.approx(expected.mean().item())


def test_cosines_are_of_each_visual_token() -> None:
    theirs = RANDOM.normal(size=(2, 5, 8)).astype(np.float32)
    ours = theirs * 3
    ours[1, 2] *= -1
    figures = visual_figures(theirs, ours, ["one", "other"])
    assert figures.values["cosine_min"] == pytest.approx(-1)
    assert figures.values["cosine_mean"] == pytest.approx(0.8)
    assert figures.worst["cosine_min"] == "other"


def test_every_precision_has_limits_and_the_looser_half_rules_the_answers() -> None:
    for vision in VISION_PRECISIONS:
        for llm in LLM_PRECISIONS:
            row = language_row(Precisions(vision, llm))
            loosest = list(ROWS.values()).index(row)
            assert loosest >= list(ROWS.values()).index(visual_row(Precisions(vision, llm)))
    assert language_row(Precisions("fp32", "int4")) is ROWS["int4"]
    assert language_row(Precisions("int8", "fp16")) is ROWS["int8"]
    assert visual_row(Precisions("fp32", "int4")) is ROWS["fp32"]


def test_a_plan_grows_less_thorough_only_for_large_models() -> None:
    assert (plan_for(2_000_000), plan_for(800_000_000)) == (ParityPlan(), LARGE)
    assert (ParityPlan().min_images, LARGE.min_images) == (MIN_IMAGES, 16) == (64, 16)
    for plan in (ParityPlan(), LARGE):
        check_images(0, plan)
        check_images(plan.min_images, plan)
        with pytest.raises(ArgumentError, match=f"{plan.min_images - 1} images are too few"):
            check_images(plan.min_images - 1, plan)


def test_a_prompt_fills_the_context_or_is_refused(
    checkpoint: Checkpoint, job: ExportJob, asked: QuestionSet, tmp_path: Path
) -> None:
    taken = len(asked.questions[0].ids)

    def within(context: int) -> QuestionSet:
        language = job.language.model_copy(update={"max_positions": context})
        one = replace(job, parity_samples=job.parity_samples[:1], language=language)
        return questions.prepare(one, checkpoint.root, tmp_path / "squares")

    assert within(taken + 5).longest == 5
    with pytest.raises(ContextLengthError, match=f"image 1 takes {taken} tokens"):
        within(taken)


def test_answers_of_random_weights_hang_on_no_tie(reference: ReferenceResult) -> None:
    best = np.sort(reference.answers.logits, axis=-1)
    assert float((best[..., -1] - best[..., -2]).min()) > 1e-3


def test_a_bundle_carries_answers_to_test_itself_by(
    asked: QuestionSet,
    engine: LoadedEngine,
    reference: ReferenceResult,
    bundle_for: RandomBundles,
    tmp_path: Path,
) -> None:
    bundle = open_bundle(bundle_for("openvino"))
    assert SELFTEST_NAME in {entry.path for entry in bundle.manifest.files}
    found = run_selftest(engine, bundle.root, bundle.manifest)
    assert found.passed
    assert found.images == 2
    assert found.cosine_min > 0.99999
    assert (found.top1, engine.language.length) == (1.0, 0)
    assert abs(found.kl_mean) < 1e-6

    other = changed(reference, tmp_path / "other", "features", noisy(0.5))
    write_selftest(tmp_path, asked, other.answers, EXACT)
    missed = run_selftest(engine, tmp_path, bundle.manifest)
    assert not missed.passed
    assert missed.cosine_min < 0.999
    assert missed.top1 == 1.0
    assert "asked: 0.99999" in str(missed)

    with pytest.raises(BundleError, match="without images to compare on"):
        run_selftest(engine, tmp_path / "other", bundle.manifest)
    (tmp_path / SELFTEST_NAME).write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(BundleError, match="cannot be read"):
        run_selftest(engine, tmp_path, bundle.manifest)
