"""The tables of the report, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from laco_deploy.training.compare.statistics import (
    Difference,
    Rows,
    Spread,
    accuracy,
    difference,
)
from laco_deploy.training.compare.studies import (
    PAPER_METHODS,
    PAPER_POSITIONS,
    Studies,
    share_right,
)
from laco_deploy.training.evaluation import Score

NOTHING = "-"


def methods_table(studies: Studies) -> str:
    """Counterpart of the paper's Table 1."""
    header = ["method", "encoder, MFLOP", "merger weights", *studies.groups, "all"]
    header += ["less LaCo", "paper"]
    laco, lines = studies.rows("laco"), []
    for method in (*studies.methods, "no merger"):
        rows = studies.rows(method)
        if not rows:
            lines.append([method, *[NOTHING] * (len(header) - 1)])
            continue
        one = next(iter(rows.values()))
        apart = None if method == "laco" else difference(rows, laco)
        lines.append(
            [
                f"**{method}**" if method == "laco" else method,
                _millions(one.encoder_operations),
                f"{one.merger_parameters:,}",
                *(percent(accuracy(rows, group)) for group in (*studies.groups, None)),
                points(apart),
                f"{PAPER_METHODS[method]}" if method in PAPER_METHODS else NOTHING,
            ]
        )
    lines.append(_reference("pretrained, not trained on", studies, studies.reference("test")))
    lines.append(_reference("commonest answer", studies, studies.reference("guesses")))
    return _table(header, lines)


def positions_table(studies: Studies) -> str:
    """Counterpart of the paper's Table 8."""
    last = studies.rows("laco", after_block=studies.budget.recipe.vision_blocks)
    header = ["place", "after block", "encoder, MFLOP", "of LaCo@1", "training, s", "of LaCo@1"]
    header += [*studies.groups, "all", "less LaCo@1", "paper"]
    lines = []
    for place in studies.budget.positions:
        rows, share = studies.rows("laco", after_block=place), studies.share(place)
        paper = PAPER_POSITIONS.get(share)
        if not rows:
            lines.append([f"LaCo@{share}", str(place), *[NOTHING] * (len(header) - 2)])
            continue
        one = next(iter(rows.values()))
        lines.append(
            [
                f"LaCo@{share}",
                str(place),
                _millions(one.encoder_operations),
                _ratio([row.encoder_operations for row in rows.values()], last, "encoder"),
                f"{seconds(rows).mean:.0f}",
                _ratio([row.cpu_seconds for row in rows.values()], last, "training"),
                *(percent(accuracy(rows, group)) for group in (*studies.groups, None)),
                NOTHING if rows == last else points(difference(rows, last)),
                NOTHING if paper is None else f"{paper}",
            ]
        )
    return _table(header, lines)


def rates_table(studies: Studies) -> str:
    """Exact match of every method under every plan of rates."""
    plans = studies.budget.rate_plans
    header = ["method", *(name.replace("_", " ") for name in plans)]
    lines = []
    for method in studies.methods:
        cells = []
        for name in plans:
            rows = studies.rows(method, rates=name)
            if not rows:
                cells.append(NOTHING)
                continue
            apart = None if name == "scaled" else difference(rows, studies.rows(method))
            change = "" if apart is None else f" ({100 * apart.mean:+.1f})"
            cells.append(percent(accuracy(rows)) + change)
        if any(cell != NOTHING for cell in cells[1:]):
            lines.append([method, *cells])
    return _table(header, lines)


def plans_table(studies: Studies) -> str:
    """The peak rates of every plan."""
    header = ["plan", "stage 1: merger", "stage 1: projector", "tower", "merger", "the rest"]
    rate = studies.budget.stage1_rate
    lines = [
        [
            name.replace("_", " "),
            f"{rate:g}" if plan.merger_in_stage1 else "frozen",
            f"{rate:g}",
            *(f"{value:g}" for value in (plan.tower, plan.merger, plan.rest)),
        ]
        for name, plan in studies.budget.rate_plans.items()
    ]
    return _table(header, lines)


def percent(spread: Spread) -> str:
    """`71.2 ± 0.4` of a share."""
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
    return f"{100 * spread.mean:.1f}{deviation}"


def points(apart: Difference | None) -> str:
    """`-3.1 (-4.0 to -2.2)` in percentage points."""
    if apart is None:
        return NOTHING
    if apart.pairs < 2:
        return f"{100 * apart.mean:+.1f} (one seed)"
    return f"{100 * apart.mean:+.1f} ({100 * apart.low:+.1f} to {100 * apart.high:+.1f})"


def seconds(rows: Rows) -> Spread:
    """Processor time of training over the seeds."""
    return Spread.of(row.cpu_seconds for row in rows.values())


def _ratio(values: Sequence[float], last: Rows, what: str) -> str:
    if not last:
        return NOTHING
    key = "encoder_operations" if what == "encoder" else "cpu_seconds"
    other = Spread.of(getattr(row, key) for row in last.values())
    return f"{Spread.of(values).mean / other.mean:.2f}"


def _reference(name: str, studies: Studies, scores: Sequence[Score]) -> list[str]:
    shares = (f"{100 * share_right(scores, group):.1f}" for group in (*studies.groups, None))
    return [name, NOTHING, NOTHING, *shares, NOTHING, NOTHING]


def _millions(operations: int) -> str:
    return f"{operations / 1e6:.1f}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|" + "---|" * len(header)
    return "\n".join([_line(header), rule, *map(_line, lines)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


__all__ = [
    "methods_table",
    "percent",
    "plans_table",
    "points",
    "positions_table",
    "rates_table",
    "seconds",
]
