"""The report of a comparison, from its result files alone."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from laco_deploy.training.compare.cells import plan, read_results, result_path
from laco_deploy.training.compare.figures import FIGURES, save_figures
from laco_deploy.training.compare.findings import findings
from laco_deploy.training.compare.insertion import PUBLISHED_STD, PUBLISHED_WIDTH
from laco_deploy.training.compare.pretrain import RECORD
from laco_deploy.training.compare.settings import PAPER_REST_RATE, Budget
from laco_deploy.training.compare.studies import Studies, share_right
from laco_deploy.training.compare.tables import (
    methods_table,
    plans_table,
    positions_table,
    rates_table,
)
from laco_runtimes.errors import DataError

PAGE = "comparison.md"
FOLDER = "comparison"


def write_report(budget: Budget, root: Path, out: Path) -> Path:
    """Write `comparison.md` and the folder `comparison` with figures and every result as CSV.

    Args:
        budget: that of the comparison.
        root: its folder; runs that are missing are named.
        out: folder of the page.

    Returns:
        The page.

    Raises:
        DataError: no result yet, one of other settings, or a damaged one.
    """
    studies = read_studies(budget, root)
    out.mkdir(parents=True, exist_ok=True)
    save_figures(studies, out / FOLDER)
    _write_csv(studies, out / FOLDER / "results.csv")
    page = out / PAGE
    temporary = page.with_name(f".{page.name}.tmp")
    temporary.write_text(_page(studies, root), encoding="utf-8")
    temporary.replace(page)
    return page


def read_studies(budget: Budget, root: Path) -> Studies:
    """The results under `root`, and the record of the pretrained model.

    Raises:
        DataError: no result yet, one of other settings, or a damaged one.
    """
    results = read_results(root, budget.digest)
    record = root / "pretrained" / RECORD
    if not results or not record.is_file():
        raise DataError(f"'{root}' holds no result yet. Run `laco compare --out {root}` first.")
    pretraining: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return Studies(budget, tuple(results), pretraining)


def _page(studies: Studies, root: Path) -> str:
    missing = [cell for cell in plan(studies.budget) if not result_path(root, cell).exists()]
    parts = [
        "# The methods compared, on a model trained here",
        "<!-- Written by `laco compare`: change the program, not this page. -->",
        _setting(studies),
    ]
    if missing:
        names = ", ".join(cell.name for cell in missing[:4])
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        parts.append(f"**Not finished:** {len(missing)} runs are missing ({names}{more}).")
    parts += [
        "## What was reproduced and what was not",
        "Brackets hold 95 % confidence intervals of differences between runs of the same seed. "
        "A claim counts as shown where the interval leaves out zero.",
        _bullets(findings(studies)),
        "## Methods at a quarter of the blocks (paper, Table 1)",
        "Exact match in percent, mean ± standard deviation between seeds; `less LaCo` in points. "
        "The paper's column is its average over ten benchmarks, for the order only.",
        methods_table(studies),
        _picture("methods", "Exact match by method and group; dotted: the commonest answers"),
        "## The place in the encoder (paper, Table 8 and Figure 4)",
        "Operations as `laco_deploy.model.cost` counts them; training is processor time.",
        positions_table(studies),
        _picture("decline", "Change of accuracy, training time and operations against LaCo@1"),
        _picture("cost", "Exact match against operations in the encoder"),
        "## Learning rates of the merger",
        "The paper trains the encoder at 2e-6 and the rest at 1e-5, and does not say which of the "
        "two a merger inside the encoder gets, or that stage 1 reached it.",
        plans_table(studies),
        "Exact match in percent; in brackets the change against the plan `scaled`.",
        rates_table(studies),
        _picture("rates", "Exact match by plan of rates"),
        _picture("losses", "Training loss of the plan `scaled`"),
        "## What this can and cannot say",
        _limits(studies),
    ]
    return "\n\n".join(parts) + "\n"


def _setting(studies: Studies) -> str:
    budget, recipe, pretrained = studies.budget, studies.budget.recipe, studies.pretraining
    right = f"{100 * share_right(studies.reference('test')):.1f} %"
    before = pretrained["cpu_seconds"] / 3600
    cells = sum(result.total_cpu_seconds for result in studies.results) / 3600
    grid = recipe.image_size // recipe.patch_size
    extra = "" if budget.name == "full" else f" --budget {budget.name}"
    lines = (
        f"One model without a merger is pretrained for {recipe.steps:,} steps of "
        f"{recipe.batch_size} pictures and has {right} of the test right. Every run starts from "
        "it: a merger is put in, projector and merger train for "
        f"{budget.stage1_steps} steps at {budget.stage1_rate:g}, then everything for "
        f"{budget.stage2_steps} steps at {budget.rate:g}, the tower at a fifth of that as in the "
        "paper. All methods of a seed see the same batches.",
        f"Seeds: {', '.join(map(str, budget.seeds))}, of the fresh merger and of the order of the "
        "pictures. There is one pretrained model.",
        f"Encoder: {recipe.vision_blocks} blocks of AIMv2's kind, width {recipe.vision_width}, "
        f"{grid} x {grid} patches of {recipe.patch_size} pixels. Language model: "
        f"{recipe.text_layers} layers of Qwen2's kind, width {recipe.text_width}.",
        f"Data: {recipe.counts['train']:,} training and {recipe.counts['test']:,} test pictures "
        f"of {', '.join(recipe.groups)}, made by this package.",
        f"Time: {before:.1f} processor hours of pretraining "
        f"({pretrained['wall_seconds'] / 60:.0f} minutes by the clock) and "
        f"{cells:.1f} of {len(studies.results)} runs with their tests: {(before + cells) / 2:.1f} "
        "hours on 2 cores that do nothing else. It can be stopped and goes on.",
        f"Every run is a line of [results.csv]({FOLDER}/results.csv).",
    )
    return f"    laco compare --out runs/compare{extra}\n\n" + _bullets(lines)


def _limits(studies: Studies) -> str:
    budget = studies.budget
    start = PUBLISHED_STD * math.sqrt(PUBLISHED_WIDTH / budget.recipe.vision_width)
    return _bullets(
        (
            "The encoder and the language model are far smaller than the paper's and have seen "
            "only these pictures. What holds here need not hold there, and the other way round.",
            f"Rates of stage 2 are the paper's times {budget.rate / PAPER_REST_RATE:g}, in its "
            "proportions. The columns `literal` show what its own rates do in so short a run.",
            "The projector starts as it was pretrained, not fresh, and one data set serves all "
            "stages.",
            "Every merger starts as loud as its published values make it at a width of "
            f"{PUBLISHED_WIDTH:,} ({PUBLISHED_STD} there is {start:.2f} here). LaCo's last layer "
            "starts at zero; the paper does not say how it starts. `pixel_shuffle + shortcut` is "
            "the same module with that layer drawn like the others.",
            f"Intervals count the {len(budget.seeds)} seeds of the runs: so few are mostly wide, "
            "now and then agree by chance, and know nothing of another pretrained model. One "
            "question of the test is "
            f"{100 / budget.recipe.counts['test']:.2f} points.",
        )
    )


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _picture(name: str, text: str) -> str:
    return f"![{text}]({FOLDER}/{name}.svg)"


def _write_csv(studies: Studies, path: Path) -> None:
    header = ["method", "after_block", "rates", "seed", "all", *studies.groups, "before"]
    header += ["last_loss", "cpu_seconds", "encoder_operations", "prefill_operations"]
    header += ["visual_tokens", "merger_parameters"]
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        for row in studies.results:
            shares = [row.accuracy(group) for group in (None, *studies.groups)]
            table.writerow(
                [row.cell.method, row.cell.after_block or "", row.cell.rates, row.cell.seed]
                + [f"{share:.4f}" for share in (*shares, share_right(row.before))]
                + [f"{row.losses[-1][1]:.4f}", f"{row.cpu_seconds:.1f}"]
                + [row.encoder_operations, row.prefill_operations]
                + [row.visual_tokens, row.merger_parameters]
            )
    temporary.replace(path)


__all__ = ["FIGURES", "PAGE", "read_studies", "write_report"]
