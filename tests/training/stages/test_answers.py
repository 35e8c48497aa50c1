"""Held-out questions: what is asked, and that a batch answers as its questions alone would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from laco_deploy.model import LacoProcessor
from laco_deploy.model.checkpoint import load_checkpoint
from laco_deploy.training.answers import Answer, Examiner, last_answer, score, to_left
from laco_deploy.training.corpus import ChatOptions, Collator, Corpus, TrainingSet, read_mixture
from tests.training.stages.tiny_stages import write_data


@pytest.mark.parametrize(
    ("labels", "place"),
    [([-100, 1, 2], (1, 3)), ([-100, 1, -100, 2, 3, -100], (3, 5)), ([4], (0, 1))],
)
def test_the_last_answer_is_the_last_run_of_labels(
    labels: list[int], place: tuple[int, int]
) -> None:
    assert last_answer(labels) == place


def test_padding_moves_to_the_left() -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }
    moved = to_left(batch, 0)
    assert moved["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert moved["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_scores_leave_out_what_could_not_be_asked() -> None:
    answers = [
        Answer(0, "q", "hello", "Hello"),
        Answer(1, "q", "hello", "hallo"),
        Answer(2, "", "", "", "it is broken"),
    ]
    found = score(answers)
    assert found == pytest.approx({"exact_match": 0.5, "anls": 0.9, "questions": 2, "broken": 1})
    assert score([])["exact_match"] == 0


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = write_data(tmp_path_factory.mktemp("held-out"), 5, text_only=2)
    (data.parent / "1.png").write_bytes(b"no picture")
    return data


def examine(checkpoint: Path, held_out: Path, batch_size: int) -> list[Answer]:
    loaded = load_checkpoint(checkpoint)
    processor = LacoProcessor.from_pretrained(checkpoint)
    questions = TrainingSet(Corpus(read_mixture(held_out)), processor, ChatOptions(clean_mask=True))
    pad = processor.tokenizer.pad_token_id
    examiner = Examiner(
        questions, processor.tokenizer, Collator(pad), max_new_tokens=5, batch_size=batch_size
    )
    before = torch.get_rng_state()
    loaded.model.train()
    answers = examiner.ask(loaded.model, range(len(examiner)))
    assert loaded.model.training
    assert torch.equal(torch.get_rng_state(), before)  # else a resumed run would be another one
    return answers


def test_a_batch_answers_as_its_questions_alone(checkpoint: Path, held_out: Path) -> None:
    alone = examine(checkpoint, held_out, 1)
    assert examine(checkpoint, held_out, 4) == alone
    assert [answer.number for answer in alone] == [0, 1, 2, 3, 4]
    assert alone[1].fault.startswith("sample-1: ")
    assert [answer.reference for answer in alone if not answer.fault] == [
        f"It is {n}" + " system" * n for n in (0, 2, 3, 4)
    ]
    assert all(answer.answer for answer in alone if not answer.fault)


def test_an_answer_is_what_the_model_generates_from_the_prompt(
    checkpoint: Path, held_out: Path
) -> None:
    from PIL import Image

    loaded, processor = load_checkpoint(checkpoint), LacoProcessor.from_pretrained(checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    image = Image.open(held_out.parent / "0.png")
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    output = loaded.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    text = processor.tokenizer.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert examine(checkpoint, held_out, 1)[0].answer == text.strip()
