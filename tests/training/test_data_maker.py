"""The data maker: right answers, fair splits, repeatable bytes, a folder whole or absent."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from laco_deploy.training.data import (
    GROUPS,
    SPLITS,
    TRAIN_WEIGHTS,
    DataError,
    DatasetSummary,
    load_records,
    make_dataset,
)
from laco_deploy.training.data import digits as digits_module
from laco_deploy.training.data import shapes as shapes_module
from laco_deploy.training.data.charts import LABELS
from laco_deploy.training.data.colors import COLORS, MIN_CONTRAST, contrast, ink_and_paper
from laco_deploy.training.data.plan import share
from laco_deploy.training.data.scans import Scan, load_scans, split_indices
from laco_deploy.training.data.scene import Scene
from laco_deploy.training.data.shapes import Shape
from laco_deploy.training.data.words import WORDS
from laco_runtimes.errors import LacoError

ROOT = Path(__file__).parents[2]
SMALL = {"train": 200, "val": 30, "test": 75}
TINY = {"train": 4, "val": 2, "test": 2}
ALL_TASKS = [(group, task) for group in GROUPS for task in GROUPS[group].tasks]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DatasetSummary:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", counts=SMALL, seed=3)


def scenes(group: str, task: str, count: int, canvas: int = 168) -> list[Scene]:
    maker = GROUPS[group]
    return [
        maker.render(np.random.default_rng([seed, 7]), "test", canvas, task)
        for seed in range(count)
    ]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


# What is written


def test_counts_on_disk_are_the_counts_asked_for(made: DatasetSummary) -> None:
    for split in SPLITS:
        records = load_records(made.path, split)
        pictures = list((made.path / "images" / split).iterdir())
        assert len(records) == len(pictures) == SMALL[split]
        assert Counter(record["group"] for record in records) == made.counts[split]
    about = json.loads((made.path / "dataset.json").read_text())
    assert about["counts"] == SMALL
    assert about["seed"] == 3
    assert set(about["sources"]) == set(GROUPS)
    assert "CC BY" in about["sources"]["digits"]


def test_every_record_is_a_llava_conversation_about_its_picture(made: DatasetSummary) -> None:
    seen = set()
    for split in SPLITS:
        for record in load_records(made.path, split):
            seen.add(record["id"])
            assert record["image"].startswith(f"images/{split}/")
            with Image.open(made.path / record["image"]) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (168, 168))
            turns = record["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            marks = [turn["value"].count("<image>") for turn in turns]
            assert marks == [1] + [0] * (len(turns) - 1)
            assert turns[0]["value"].startswith("<image>\n")
            assert len(record["task"]) == len(turns) // 2
            assert set(record["task"]) <= set(GROUPS[record["group"]].tasks)
    assert len(seen) == sum(SMALL.values())


def test_train_has_two_to_four_different_questions_and_the_others_one(made: DatasetSummary) -> None:
    turns = Counter()
    for record in load_records(made.path, "train"):
        prompts = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"][::2]]
        assert len(set(prompts)) == len(prompts)
        turns[len(prompts)] += 1
    assert set(turns) == {2, 3, 4}
    for split in ("val", "test"):
        assert all(len(record["task"]) == 1 for record in load_records(made.path, split))


def test_no_question_of_a_picture_is_asked_twice_in_other_words(made: DatasetSummary) -> None:
    once = {"read_digit", "read_number", "left_digit", "right_digit", "highest_bar", "read_word"}
    once |= {task for _, task in ALL_TASKS if "count" in task}
    for record in load_records(made.path, "train"):
        asked = Counter(record["task"])
        assert all(asked[task] <= 1 for task in once)


def test_train_groups_follow_their_weights(made: DatasetSummary) -> None:
    for group, weight in TRAIN_WEIGHTS.items():
        assert made.counts["train"][group] == pytest.approx(weight * SMALL["train"], abs=1)


def test_val_and_test_ask_every_task_equally_often(made: DatasetSummary) -> None:
    for split in ("val", "test"):
        asked = Counter(record["task"][0] for record in load_records(made.path, split))
        assert set(asked.values()) == {SMALL[split] // len(ALL_TASKS)}
        assert set(asked) == {task for _, task in ALL_TASKS}


def test_splits_share_no_picture(made: DatasetSummary) -> None:
    files = digests(made.path / "images")
    assert len(set(files.values())) == len(files) == sum(SMALL.values())


# Repeatable


def test_same_seed_gives_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    counts = {"train": 150, "val": 15, "test": 15}  # more than one chunk of work
    first = make_dataset(tmp_path / "one", counts=counts, seed=5)
    second = make_dataset(tmp_path / "two", counts=counts, seed=5, workers=2)
    assert digests(first.path) == digests(second.path)
    assert first.counts == second.counts


def test_another_seed_gives_other_pictures(tmp_path: Path) -> None:
    first = make_dataset(tmp_path / "one", counts=TINY, seed=1)
    second = make_dataset(tmp_path / "two", counts=TINY, seed=2)
    pictures = [set(digests(made.path / "images").values()) for made in (first, second)]
    assert not pictures[0] & pictures[1]


# The scans


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


@pytest.mark.parametrize("task", GROUPS["shapes"].tasks)
def test_shape_answers_match_the_pixels(task: str) -> None:
    from scipy.ndimage import binary_fill_holes, label

    # Part of its own bounding box that an upright or slightly turned shape fills.
    filled = {"star": (0.22, 0.40), "triangle": (0.40, 0.58), "square": (0.66, 1.01)}
    filled["circle"] = (0.72, 0.83)
    for scene in scenes("shapes", task, 25):
        colors = masks(scene.image)
        pieces = {
            name: label(binary_fill_holes(mask), np.ones((3, 3))) for name, mask in colors.items()
        }
        counted = sum(
            int((np.bincount(regions.ravel())[1:] > 50).sum()) for regions, _ in pieces.values()
        )
        assert any(question.task == task for question in scene.questions)
        for question in scene.questions:
            words = question.prompts[0].rstrip("?").split()
            if question.task == "shape_count":
                assert question.answer == str(counted)
            if question.task == "shape_color":
                assert question.answer in colors
            if question.task == "shape_kind":
                ys, xs = np.nonzero(colors[words[-1]])
                part = len(xs) / ((np.ptp(xs) + 1) * (np.ptp(ys) + 1))
                low, high = filled[question.answer]
                assert low < part < high
                assert max(np.ptp(xs), np.ptp(ys)) > 0.2 * 168
            if question.task == "shape_side" and np.max(pieces[words[2]][0]) == 1:
                ys, xs = np.nonzero(colors[words[2]])
                sides = {"left": xs.mean() < 84, "right": xs.mean() > 84}
                sides |= {"top": ys.mean() < 84, "bottom": ys.mean() > 84}
                assert sides[question.answer]
                assert question.answer in words


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
        assert len(scene.questions) >= 2
        assert any(question.task == task for question in scene.questions)
        for question in scene.questions:
            assert len(set(question.prompts)) >= 2
            assert question.answer == question.answer.lower()
            assert 1 <= len(question.answer.split()) <= 3


def test_shapes_that_leave_only_one_question_are_drawn_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    twins = [Shape("star", "red", x, 0.5, 0.3, 0.0) for x in (0.3, 0.7)]
    pair = [twins[0], Shape("circle", "blue", 0.7, 0.5, 0.3, 0.0)]
    monkeypatch.setattr(
        shapes_module, "_arrange", lambda rng, left=[twins, twins, pair]: left.pop(0)
    )
    (scene,) = scenes("shapes", "shape_count", 1)
    assert {question.answer for question in scene.questions} >= {"red", "blue"}


def test_ink_stands_out_from_paper() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    rng = np.random.default_rng(0)
    assert min(contrast(*ink_and_paper(rng)) for _ in range(300)) >= MIN_CONTRAST


def test_shares_add_up() -> None:
    assert share(10, [1, 1, 1]) == [4, 3, 3]
    assert share(100, [0.45, 0.25, 0.12, 0.18]) == [45, 25, 12, 18]
    assert share(1, [0.45, 0.55]) == [0, 1]


# The folder


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    make_dataset(tmp_path / "set", counts=TINY, progress=lambda *call: calls.append(call))
    assert calls == [(done, 8) for done in range(1, 9)]


def test_a_finished_folder_is_reused(tmp_path: Path) -> None:
    first = make_dataset(tmp_path / "set", counts=TINY)
    calls: list[tuple[int, int]] = []
    second = make_dataset(tmp_path / "set", counts=TINY, progress=lambda *call: calls.append(call))
    assert calls == []
    assert second == first


def test_other_settings_are_refused_unless_told_to_overwrite(tmp_path: Path) -> None:
    make_dataset(tmp_path / "set", counts=TINY)
    before = digests(tmp_path / "set")
    with pytest.raises(DataError, match="other settings"):
        make_dataset(tmp_path / "set", counts=TINY, seed=1)
    assert digests(tmp_path / "set") == before
    make_dataset(tmp_path / "set", counts=TINY, seed=1, overwrite=True)
    assert json.loads((tmp_path / "set" / "dataset.json").read_text())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def stop(done: int, total: int) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "set", counts=TINY, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old_set(tmp_path: Path) -> None:
    make_dataset(tmp_path / "set", counts=TINY)
    before = digests(tmp_path / "set")
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "set", counts=TINY, seed=1, overwrite=True, progress=stop)
    assert digests(tmp_path / "set") == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def plain_file(path: Path) -> None:
    path.write_text("years of work")


@pytest.mark.parametrize("occupy", [foreign_folder, plain_file])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_never_replaced(
    occupy: Callable[[Path], None], overwrite: bool, tmp_path: Path
) -> None:
    occupy(tmp_path / "set")
    with pytest.raises(DataError, match="not a data set"):
        make_dataset(tmp_path / "set", counts=TINY, overwrite=overwrite)
    kept = next(path for path in tmp_path.rglob("*") if path.is_file())
    assert kept.read_text() == "years of work"


def test_a_damaged_set_is_refused_and_can_be_overwritten(tmp_path: Path) -> None:
    make_dataset(tmp_path / "set", counts=TINY)
    (tmp_path / "set" / "val.json").unlink()
    with pytest.raises(DataError, match="damaged"):
        make_dataset(tmp_path / "set", counts=TINY)
    with pytest.raises(DataError, match="damaged"):
        load_records(tmp_path / "set", "train")
    make_dataset(tmp_path / "set", counts=TINY, overwrite=True)
    assert len(load_records(tmp_path / "set", "val")) == TINY["val"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    make_dataset(tmp_path / "set", counts={"test": 2})
    assert len(load_records(tmp_path / "set", "test")) == 2
    assert load_records(tmp_path / "set", "train") == []


def test_records_of_a_missing_set_are_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a finished data set"):
        load_records(tmp_path / "set", "train")


@pytest.mark.parametrize(
    "settings",
    [
        {"counts": {"train": -1, "test": 5}},
        {"counts": {"train": 0}},
        {"counts": {"training": 10}},
        {"canvas": 8},
        {"canvas": 100_000},
        {"seed": -1},
        {"groups": ()},
        {"groups": ("digits", "digits")},
        {"groups": ("photos",)},
        {"workers": 0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        make_dataset(tmp_path / "set", **{"counts": TINY, **settings})
    assert isinstance(caught.value, LacoError)
    assert isinstance(caught.value, ValueError)
    assert list(tmp_path.iterdir()) == []


def test_groups_can_be_chosen(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "set", counts={"train": 7}, groups=("charts", "text"))
    assert made.counts["train"] == {"charts": 4, "text": 3}


def test_making_data_needs_no_torch() -> None:
    code = "import sys, laco_deploy.training.data; sys.exit('torch' in sys.modules)"
    path = f"import sys; sys.path[:0] = {sys.path!r}; "
    assert subprocess.run([sys.executable, "-c", path + code], check=False).returncode == 0


# The shipped sample images


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shipped_sample_images_are_what_the_script_makes(tmp_path: Path) -> None:
    shipped = ROOT / "samples" / "images"
    load_script(ROOT / "samples" / "make_images.py").main(tmp_path)
    questions = json.loads((shipped / "questions.json").read_text())
    assert questions == json.loads((tmp_path / "questions.json").read_text())
    readme = (shipped / "README.md").read_text()
    for entry in questions:
        assert f"| `{entry['image']}` | {entry['prompt']} | {entry['answer']} |" in readme
    names = sorted(path.name for path in tmp_path.iterdir())
    assert sorted([*names, "README.md"]) == sorted(path.name for path in shipped.iterdir())
    for name in names:
        if name.endswith(".json"):
            continue
        with Image.open(shipped / name) as ours, Image.open(tmp_path / name) as again:
            # Another release of Pillow may round or compress otherwise, so not the bytes.
            far = np.abs(np.asarray(ours).astype(int) - np.asarray(again).astype(int))
        assert far.mean() < 1.0
