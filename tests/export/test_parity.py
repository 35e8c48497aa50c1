"""The comparison with PyTorch finds what it is there to find."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from laco_deploy.exporting import TorchReference
from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.model.checkpoint import Checkpoint
from laco_export import parity
from laco_export.exporter import export_bundle
from laco_export.job import ExportJob
from laco_export.parity import Question
from laco_export.protocols import Floats, GreedyAnswer, Reference
from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import LoadedEngine, LoadRequest
from laco_runtimes.errors import ContextLengthError, ParityError
from tests.bundles import RandomBundles, reused_graphs

Edit = Callable[[LacoForConditionalGeneration], None]


def reference(checkpoint: Checkpoint, edit: Edit) -> TorchReference:
    """PyTorch with another model than the one that was exported."""
    model = copy.deepcopy(checkpoint.model)
    with torch.no_grad():
        edit(model)
    return TorchReference(model)


def edit_merger(model: LacoForConditionalGeneration) -> None:
    model.model.vision_encoder.mergers["1"].linear_2.bias[0] += 2.0


def edit_decoder(model: LacoForConditionalGeneration) -> None:
    model.model.language_model.norm.weight[0] += 0.01


@dataclass
class LastTokenDiffers:
    """Gives another last token than `inner`, chosen by a margin of `margin`."""

    inner: Reference
    margin: float

    def image_features(self, pixel_values: Floats) -> Floats:
        return self.inner.image_features(pixel_values)

    def prefill_logits(self, pixel_values: Floats, ids: list[int]) -> Floats:
        return self.inner.prefill_logits(pixel_values, ids)

    def greedy(self, pixel_values: Floats, ids: list[int], max_new_tokens: int) -> GreedyAnswer:
        answer = self.inner.greedy(pixel_values, ids, max_new_tokens)
        return GreedyAnswer(
            (*answer.tokens[:-1], answer.tokens[-1] + 1), (*answer.margins[:-1], self.margin)
        )


@pytest.fixture(scope="module")
def engine(bundle_for: RandomBundles) -> LoadedEngine:
    bundle = open_bundle(bundle_for("onnxruntime"))
    manifest = bundle.manifest
    return load_engine(LoadRequest(bundle.root, manifest, manifest.variants[0], "auto"))


@pytest.fixture(scope="module")
def questions(checkpoint: Checkpoint, job: ExportJob) -> list[Question]:
    return parity.prepare(job, checkpoint.tokenizer_path)


def compare(job: ExportJob, engine: LoadedEngine, questions: list[Question]) -> parity.ParityReport:
    return parity.compare(job, engine, questions, lambda: None)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_merger, r"visual tokens of image 1: the least cosine is 0\.99.*0\.99999"),
        (edit_decoder, r"logits after the prompt about image 1: they differ by up to .*0\.001"),
    ],
)
def test_an_engine_of_other_weights_is_found_out(
    checkpoint: Checkpoint,
    job: ExportJob,
    engine: LoadedEngine,
    questions: list[Question],
    edit: Edit,
    message: str,
) -> None:
    other = replace(job, reference=reference(checkpoint, edit))
    with pytest.raises(ParityError, match=message) as caught:
        compare(other, engine, questions)
    assert caught.value.exit_code == 3


def test_another_answer_is_a_miss(
    job: ExportJob, engine: LoadedEngine, questions: list[Question]
) -> None:
    other = replace(job, reference=LastTokenDiffers(job.reference, margin=2e-4))
    with pytest.raises(ParityError, match=r"greedy answer about image 1: .*0\.0002 apart"):
        compare(other, engine, questions)


def test_another_answer_at_a_tie_is_noted_and_let_pass(
    job: ExportJob, engine: LoadedEngine, questions: list[Question]
) -> None:
    other = replace(job, reference=LastTokenDiffers(job.reference, margin=5e-5))
    report = compare(other, engine, questions[:2])
    assert report.parity.greedy_identical == 0
    assert [sentence.split(" is another")[0] for sentence in report.ties] == [
        "the answer about image 1",
        "the answer about image 2",
    ]


def test_features_that_are_not_numbers_are_a_miss(
    job: ExportJob, engine: LoadedEngine, questions: list[Question]
) -> None:
    nowhere = replace(questions[0], pixel_values=questions[0].pixel_values * float("nan"))
    with pytest.raises(ParityError, match="visual tokens of image 1: the least cosine is nan"):
        compare(job, engine, [nowhere])


def test_a_baseline_of_other_weights_is_found_out(
    checkpoint: Checkpoint, job: ExportJob, engine: LoadedEngine, questions: list[Question]
) -> None:
    model = copy.deepcopy(checkpoint.model)
    parity.compare_baseline(job, engine, model, questions)
    with torch.no_grad():
        edit_merger(model)
    with pytest.raises(ParityError, match="visual tokens of image 1"):
        parity.compare_baseline(job, engine, model, questions)


def test_a_prompt_fills_the_context_or_is_refused(
    checkpoint: Checkpoint, job: ExportJob, engine: LoadedEngine, questions: list[Question]
) -> None:
    taken = len(questions[0].ids)
    samples = job.parity_samples[:1]
    full = replace(
        job,
        parity_samples=samples,
        language=job.language.model_copy(update={"max_positions": taken + 5}),
    )
    [question] = parity.prepare(full, checkpoint.tokenizer_path)
    assert question.max_new_tokens == 5
    assert compare(full, engine, [question]).parity.greedy_identical == 1

    over = replace(full, language=job.language.model_copy(update={"max_positions": taken}))
    with pytest.raises(ContextLengthError, match=f"image 1 takes {taken} tokens"):
        parity.prepare(over, checkpoint.tokenizer_path)


def test_a_miss_leaves_nothing_behind(
    bundle_for: RandomBundles, checkpoint: Checkpoint, job: ExportJob, tmp_path: Path
) -> None:
    other = replace(job, reference=reference(checkpoint, edit_decoder))
    with reused_graphs(bundle_for("onnxruntime")), pytest.raises(ParityError):
        export_bundle(other, tmp_path / "engine")
    assert not any(tmp_path.iterdir())


def test_answers_of_random_weights_hang_on_no_tie(
    job: ExportJob, questions: list[Question]
) -> None:
    for question in questions[:4]:
        answer = job.reference.greedy(question.pixel_values, question.ids, 32)
        assert min(answer.margins) > 1e-3
