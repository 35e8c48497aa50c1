"""What the pictures show: every answer is checked against the pixels or the layout."""

import hashlib
import re

import numpy as np
import pytest
from PIL import Image

from laco_deploy.training.data import (
    GROUPS,
    SPLITS,
)
from laco_deploy.training.data import digits as digits_module
from laco_deploy.training.data import shapes as shapes_module
from laco_deploy.training.data.charts import LABELS
from laco_deploy.training.data.colors import COLORS, MIN_CONTRAST, contrast, ink_and_paper
from laco_deploy.training.data.scans import Scan, load_scans, split_indices
from laco_deploy.training.data.scene import Scene
from laco_deploy.training.data.shapes import KINDS, Shape
from laco_deploy.training.data.words import WORDS

ALL_TASKS = [(group, task) for group in GROUPS for task in GROUPS[group].tasks]


def scenes(group: str, task: str, count: int, canvas: int = 168) -> list[Scene]:
    maker = GROUPS[group]
    return [
        maker.render(np.random.default_rng([seed, 7]), "test", canvas, task)
        for seed in range(count)
    ]


def test_scans_are_split_1400_150_247_by_class_and_for_ever() -> None:
    from sklearn.datasets import load_digits

    labels = load_digits().target
    split = split_indices(labels)
    assert [len(split[name]) for name in SPLITS] == [1400, 150, 247]
    everything = np.concatenate([split[name] for name in SPLITS])
    assert sorted(everything) == list(range(1797))
    assert set(np.bincount(labels[split["train"]])) == {140}
    assert set(np.bincount(labels[split["val"]])) == {15}
    # A model is only held out from the scans it was trained without: this split must never move.
    digest = hashlib.sha256(split["test"].astype("<i8").tobytes()).hexdigest()
    assert digest == "22f0996209087aa2fdce990bac201f7b827aacf084d2927f8316a985eadc07b4"


def test_a_split_shows_only_its_own_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def watch(split: str) -> tuple[Scan, ...]:
        shown.append(split)
        return load_scans(split)

    monkeypatch.setattr(digits_module, "load_scans", watch)
    for split in SPLITS:
        for task in GROUPS["digits"].tasks:
            GROUPS["digits"].render(np.random.default_rng(0), split, 84, task)
        assert set(shown) == {split}
        shown.clear()


# The answers, checked against the pixels


def block(digit: int, width: int) -> Scan:
    """A stand-in for a scan that can be told from others by the width of its ink."""
    ink = np.zeros((96, 96), np.uint8)
    left = 48 - width // 2
    ink[16:80, left : left + width] = 255
    return Scan(digit, Image.fromarray(ink), (left, 16, left + width, 80))


def blocks(image: Image.Image) -> list[tuple[float, str]]:
    """Blocks from left to right: centre in x, and which digit the block stands for."""
    from scipy.ndimage import label

    pixels = np.asarray(image).astype(int)
    away = np.abs(pixels - pixels[0, 0]).sum(axis=2) > 90
    regions, number = label(away)
    found = []
    for region in range(1, number + 1):
        ys, xs = np.nonzero(regions == region)
        slimness = len(ys) / np.ptp(ys) ** 2  # 0.13 or 0.47 before it leans
        found.append((float(xs.mean()), "5" if slimness > 0.28 else "1"))
    return sorted(found)


@pytest.mark.parametrize("task", GROUPS["digits"].tasks)
def test_digit_answers_match_what_stands_where(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits_module, "load_scans", lambda split: (block(1, 8), block(5, 30)))
    for scene in scenes("digits", task, 25):
        digits = [digit for _, digit in blocks(scene.image)]
        right = {
            "count_digits": str(len(digits)),
            "read_digit": digits[0],
            "left_digit": digits[0],
            "right_digit": digits[-1],
            "read_number": "".join(digits),
        }
        for question in scene.questions:
            assert question.answer == right[question.task]


@pytest.mark.parametrize("task", ["read_digit", "read_number"])
def test_digits_are_as_large_as_promised(task: str) -> None:
    for scene in scenes("digits", task, 40):
        pixels = np.asarray(scene.image).astype(int)
        rows = np.nonzero((np.abs(pixels - pixels[0, 0]).sum(axis=2) > 90).any(axis=1))[0]
        assert np.ptp(rows) > 0.33 * 168


def masks(image: Image.Image) -> dict[str, np.ndarray]:
    """Pixels of each named colour."""
    pixels = np.asarray(image).astype(int)
    near = {
        name: np.abs(pixels - np.array(color)).max(axis=2) <= 3 for name, color in COLORS.items()
    }
    return {name: mask for name, mask in near.items() if mask.sum() > 50}


def shapes_in(image: Image.Image) -> list[tuple[str, str, float, float]]:
    """Kind, colour and centre (parts of the canvas) of every shape, told from the pixels alone."""
    from scipy.ndimage import label

    found = []
    for color, mask in masks(image).items():
        regions, number = label(mask, np.ones((3, 3)))
        for region in range(1, number + 1):
            ys, xs = np.nonzero(regions == region)
            if len(xs) < 50:
                continue
            y, x = ys.mean(), xs.mean()
            # The farthest pixel in radii of the disc of this area: 1 for a circle, 1.25 for a
            # square, over 1.5 for a triangle or star; a star fills less of its bounding box.
            farthest = np.hypot(xs - x, ys - y).max() / np.sqrt(len(xs) / np.pi)
            part = len(xs) / ((np.ptp(xs) + 1) * (np.ptp(ys) + 1))
            pointed = "star" if part < 0.40 else "triangle"
            kind = "circle" if farthest < 1.12 else "square" if farthest < 1.4 else pointed
            found.append((kind, color, x / image.width, y / image.height))
    return found


@pytest.mark.parametrize("task", GROUPS["shapes"].tasks)
def test_shape_answers_match_the_pixels(task: str) -> None:
    for scene in scenes("shapes", task, 25):
        found = shapes_in(scene.image)
        assert any(question.task == task for question in scene.questions)
        for question in scene.questions:
            if question.task == "shape_count":
                assert question.answer == str(len(found))
                continue
            words = set(question.prompts[0].rstrip("?").split())
            (shape,) = (s for s in found if words & {s[0], s[1]})  # it names exactly one
            kind, color, x, y = shape
            sides = {"left" if x < 0.5 else "right", "top" if y < 0.5 else "bottom"}
            right = {"shape_color": {color}, "shape_kind": {kind}, "shape_side": sides & words}
            assert {question.answer} == right[question.task]


def test_no_question_about_shapes_answers_another() -> None:
    told = {"shape_color": set(COLORS), "shape_kind": set(KINDS), "shape_side": set()}
    for task in told:
        for scene in scenes("shapes", task, 25):
            prompts = " ".join(prompt for q in scene.questions for prompt in q.prompts)
            assert not set(re.findall(r"\w+", prompts)) & told[task]


@pytest.mark.parametrize("task", GROUPS["charts"].tasks)
def test_chart_answers_match_the_heights_of_the_bars(task: str) -> None:
    for scene in scenes("charts", task, 25):
        bars = sorted(
            (float(np.nonzero(mask)[1].mean()), int(np.ptp(np.nonzero(mask)[0])) + 1)
            for mask in masks(scene.image).values()
        )
        heights = [height for _, height in bars]
        answers = {q.prompts[0]: q.answer for q in scene.questions}
        assert answers["How many bars are there?"] == str(len(bars))
        highest = LABELS[heights.index(max(heights))]
        assert answers["Which bar is the highest?"] == highest.lower()
        values = [int(answers[f"What is the value of {label}?"]) for label in LABELS[: len(bars)]]
        unit = sum(heights) / sum(values)
        assert [round(height / unit) for height in heights] == values


def test_words_keep_to_the_canvas_and_their_answers_to_the_word() -> None:
    for scene in scenes("text", "read_word", 60):
        answers = {question.task: question.answer for question in scene.questions}
        word = answers["read_word"]
        assert word in WORDS
        assert answers["first_letter"] == word[0]
        assert answers["count_letters"] == str(len(word))
        pixels = np.asarray(scene.image).astype(int)
        columns = np.nonzero((np.abs(pixels - pixels[0, 0]).sum(axis=2) > 100).any(axis=0))[0]
        assert 0.5 * 168 < np.ptp(columns) < 0.97 * 168
        assert columns[0] > 0
        assert columns[-1] < 167


def test_words_are_short_lower_case_and_named_once() -> None:
    assert len(set(WORDS)) == len(WORDS) >= 120
    assert all(3 <= len(word) <= 6 and word.isalpha() and word.islower() for word in WORDS)


@pytest.mark.parametrize(("group", "task"), ALL_TASKS)
def test_every_task_can_be_asked_with_short_lower_case_answers(group: str, task: str) -> None:
    for scene in scenes(group, task, 12, canvas=96):
        assert scene.image.size == (96, 96)
        assert len(scene.questions) >= (1 if task == "count_digits" else 2)
        assert any(question.task == task for question in scene.questions)
        for question in scene.questions:
            assert len(set(question.prompts)) >= 2
            assert question.answer == question.answer.lower()
            assert 1 <= len(question.answer.split()) <= 3


def test_shapes_that_leave_only_one_question_are_drawn_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    twins = [Shape("star", "red", x, 0.3, 0.3, 0.0) for x in (0.3, 0.7)]
    pair = [twins[0], Shape("circle", "blue", 0.7, 0.3, 0.3, 0.0)]
    monkeypatch.setattr(
        shapes_module, "_arrange", lambda rng, left=[twins, twins, pair]: left.pop(0)
    )
    (scene,) = scenes("shapes", "shape_color", 1)
    assert {question.answer for question in scene.questions} >= {"red", "blue"}


def test_ink_stands_out_from_paper() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    rng = np.random.default_rng(0)
    assert min(contrast(*ink_and_paper(rng)) for _ in range(300)) >= MIN_CONTRAST
