"""A stage on a mixture of every format, with samples of every defect among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from laco_deploy.training.stage_run import StageJob, run_stage
from tests.bundles import make_random_checkpoint
from tests.training.corpus.samples import (
    llava_entries,
    picture,
    turns,
    write_json,
    write_jsonl,
    write_parquet,
    write_shard,
)
from tests.training.corpus.videos import write_video
from tests.training.stages.tiny_stages import short_stage

WHOLE = [
    ("a", turns("<image>\nWhat is it?", "A dot."), picture(1, (60, 40))),
    ("b", turns("Name the colour.", "Red.", "Where?", "Here."), None),
    ("c", turns("<image>\nWhere?", "Up"), picture(2, (40, 90), "JPEG")),
]
CUT = ("cut", turns("<image>", "a"), picture(3, (200, 200), "JPEG")[:3000])
UNMARKED = ("unmarked", turns("q", "a"), picture(4))
SILENT = ("silent", turns("<image>", " "), picture(5))


def mixture(folder: Path) -> tuple[Path, set[str]]:
    """A mixture file, and the names of its broken samples."""
    entries = llava_entries(folder, [*WHOLE, CUT])
    write_video(folder / "v.avi", range(0, 200, 10), fps=5)
    (folder / "none.avi").write_bytes(b"")
    (folder / "frames").mkdir()
    (folder / "frames" / "1.png").write_bytes(picture(6))
    entries += [
        {"id": "film", "video": "v.avi", "conversations": turns("<video>\nq", "a")},
        {"id": "frames", "video": "frames", "conversations": turns("<image>\nq", "a")},
        {"id": "none", "video": "none.avi", "conversations": turns("<video>\nq", "a")},
        {"id": "gone", "image": "gone.png", "conversations": turns("<image>\nq", "a")},
        {
            "id": "two",
            "image": ["a.png", "c.png"],
            "conversations": turns("<image><image>q", "a"),
        },
        {"id": "long", "image": "a.png", "conversations": turns("w " * 600, "a", "<image>", "a")},
    ]
    write_json(folder / "list.json", entries)
    lines = write_jsonl(folder / "lines.jsonl", llava_entries(folder, WHOLE))
    lines.write_bytes(lines.read_bytes() + b'{"id": "half", \n{"id": "\xff"}\n')
    write_parquet(folder / "rows.parquet", [*WHOLE, UNMARKED, CUT])
    shard = write_shard(folder / "shard.tar", [*WHOLE, SILENT, ("end", turns("q", "a"), None)])
    data = shard.read_bytes()
    at = data.index(b"end.json")
    shard.write_bytes(data[:at] + b"\xff" * 8 + data[at + 8 :])  # no longer a header
    broken = {"cut", "none", "gone", "long", "lines.jsonl[3]", "lines.jsonl[4]"}
    broken |= {"unmarked", "silent", "shard.tar[4]"}
    names = ("list.json", "lines.jsonl", "rows.parquet", "shard.tar")
    path = folder / "mixture.yaml"
    path.write_text(json.dumps({"datasets": [{"path": name} for name in names]}))
    return path, broken


@pytest.mark.parametrize("workers", [0, 2])
def test_it_trains_to_the_end_and_skips_just_the_broken_ones(tmp_path: Path, workers: int) -> None:
    checkpoint = make_random_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "data").mkdir()
    data, broken = mixture(tmp_path / "data")
    stage = short_stage(max_length=500, max_broken=20, workers=workers)
    result = run_stage(StageJob(stage=stage, checkpoint=checkpoint, data=data, out=tmp_path / "o"))
    assert result.finished
    assert result.step == result.steps == 7  # 25 samples in batches of 4
    lines = (tmp_path / "o" / "training" / "broken.jsonl").read_text().splitlines()
    names = [json.loads(line)["name"] for line in lines]
    assert set(names) == broken
    assert result.broken == len(names) == 10  # the picture cut short is there twice
