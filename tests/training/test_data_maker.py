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
from laco_deploy.training.data.plan import share
from laco_runtimes.errors import LacoError

ROOT = Path(__file__).parents[2]
SMALL = {"train": 200, "val": 30, "test": 75}
TINY = {"train": 4, "val": 2, "test": 2}
ALL_TASKS = [(group, task) for group in GROUPS for task in GROUPS[group].tasks]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DatasetSummary:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", counts=SMALL, seed=3)


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


def test_train_has_up_to_six_different_questions_and_the_others_one(made: DatasetSummary) -> None:
    turns = Counter()
    for record in load_records(made.path, "train"):
        prompts = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"][::2]]
        assert len(set(prompts)) == len(prompts)
        turns[len(prompts)] += 1
        # Of several digits that are only there to be counted, nothing else is asked.
        assert len(prompts) > 1 or record["task"] == ["count_digits"]
    assert set(turns) == {1, 2, 3, 4, 5, 6}
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
    assert made.counts["train"] == {"charts": 5, "text": 2}


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
