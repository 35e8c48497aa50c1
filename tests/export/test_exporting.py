"""What `laco_deploy.exporting` takes out of a checkpoint."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from laco_deploy.exporting import build_job
from laco_deploy.model.checkpoint import Checkpoint, CheckpointFacts, open_checkpoint
from laco_export.job import CardFacts, ExportJob
from laco_runtimes.errors import CheckpointError, ExportError
from laco_runtimes.images import load_image, preprocess
from tests.bundles import PLAN, random_samples


@pytest.fixture
def copied(checkpoint: Checkpoint, tmp_path: Path) -> Checkpoint:
    """The checkpoint with a folder of its own."""
    shutil.copytree(checkpoint.root, tmp_path / "checkpoint")
    return replace(checkpoint, root=tmp_path / "checkpoint")


def job_of(checkpoint: Checkpoint | CheckpointFacts) -> ExportJob:
    return build_job(checkpoint, target="openvino", parity_samples=random_samples(), plan=PLAN)


def test_the_facts_are_those_of_the_configuration(job: ExportJob) -> None:
    assert job.language.model_dump() == {
        "model_type": "qwen2",
        "layers": 2,
        "hidden_size": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "vocab_size": job.load().head.out_features,
        "max_positions": 512,
    }
    assert job.vision.model_dump() == {
        "model_type": "aimv2_vision_model",
        "blocks": 3,
        "width": 64,
        "image_size": 56,
        "patch_size": 7,
    }
    assert job.rope_theta == 1e6


@pytest.mark.parametrize(
    ("front_matter", "expected"),
    [
        (
            "license: apache-2.0\nmodel_name: Tiny\nbase_model:\n  - a/vision\n  - b/language\n",
            CardFacts("Tiny", "apache-2.0", ("a/vision", "b/language")),
        ),
        (
            "license: other\nlicense_name: house rules\nbase_model: a/vision\n",
            CardFacts(None, "house rules", ("a/vision",)),
        ),
        ("tags: [small]\n", CardFacts()),
    ],
)
def test_origin_and_licence_are_read_from_the_readme(
    copied: Checkpoint, front_matter: str, expected: CardFacts
) -> None:
    (copied.root / "README.md").write_text(f"---\n{front_matter}---\n# A model\n")
    assert job_of(copied).card == expected


def test_a_readme_with_broken_front_matter_is_an_error(copied: Checkpoint) -> None:
    (copied.root / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(CheckpointError, match="front matter"):
        job_of(copied)


def test_a_missing_file_is_named(copied: Checkpoint) -> None:
    (copied.root / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        job_of(copied)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}),
    ],
)
def test_attention_that_is_not_exported_is_refused(
    copied: Checkpoint, setting: str, value: object
) -> None:
    model = copy.deepcopy(copied.model)
    setattr(model.config.text_config, setting, value)
    with pytest.raises(ExportError, match=r"scaled rotary embeddings or sliding-window attention"):
        job_of(replace(copied, model=model))


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mode": "anyres", "max_tiles": 4},
        {"image_newline": True, "video_pool_stride": 2},
    ],
)
def test_the_layout_of_images_is_that_of_the_configuration(
    copied: Checkpoint, settings: dict[str, object]
) -> None:
    model = copy.deepcopy(copied.model)
    vars(model.config).update(settings)
    layout = job_of(replace(copied, model=model)).layout.model_dump()
    layout["image_newline"] = layout.pop("newline")
    plain = {"image_mode": "square", "image_newline": False, "max_tiles": 9, "video_pool_stride": 1}
    assert layout == {**plain, **settings}


def test_a_checkpoint_in_bfloat16_is_exported_as_float32(copied: Checkpoint) -> None:
    modules = job_of(replace(copied, model=copy.deepcopy(copied.model).bfloat16())).load()
    assert modules.head.weight.dtype == modules.body.embed_tokens.weight.dtype == torch.float32


def test_a_folder_is_looked_through_before_its_weights_are_read(
    copied: Checkpoint, job: ExportJob
) -> None:
    light = job_of(open_checkpoint(copied.root))
    assert replace(light, load=job.load, files=job.files) == replace(job, target="openvino")
    loaded, held = light.load(), job.load()
    torch.testing.assert_close(loaded.head.weight, held.head.weight)


def test_the_numbers_of_weights_are_those_of_the_graphs(job: ExportJob) -> None:
    modules = job.load()
    body = modules.body
    assert isinstance(body, torch.nn.Module)
    assert job.size.embed_tokens == body.embed_tokens.weight.numel()
    rest = sum(one.numel() for one in body.parameters()) - job.size.embed_tokens
    assert job.size.decoder == rest + modules.head.weight.numel()
    whole = modules.encoders["laco"]
    assert isinstance(whole, torch.nn.Module)
    # The head is the matrix of the embeddings.
    assert sum(one.numel() for one in whole.parameters()) == (
        job.size.vision_encoder + job.size.decoder
    )


def test_the_pytorch_model_answers_alike_in_one_pass_and_token_by_token(job: ExportJob) -> None:
    reference = job.load().reference
    sample = job.parity_samples[0]
    pixels = preprocess(load_image(sample.image), job.preprocessing)
    np.testing.assert_array_equal(pixels, reference.preprocess(np.asarray(sample.image)))
    ids = [*job.prompt.system, *job.prompt.turn([5, 6, 7], [16])]
    answer = reference.greedy(pixels, ids, 3)
    assert answer.logits.argmax(-1).tolist() == list(answer.tokens)
    end = len(ids) - 1
    whole = reference.logits_at(pixels, [*ids, *answer.tokens[:2]], [end, end + 1, end + 2])
    np.testing.assert_allclose(whole, answer.logits, atol=1e-4)
