"""The report in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from samples.paper_tables import paper
from samples.paper_tables.findings import LAW_POINTS, LAW_R_SQUARED, Laws, Row, Spread

HEAD = (
    "| cell | in table | k | rounds | VT ms | VT / LaCo@1 | paper | theory "
    "| TPS | TPS / LaCo@1 | paper | theory |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
)

TINY = (
    "These shapes are tiny: most of their time is not the encoder's work, and their ratios are not "
    "the paper's. Leave --tiny out to measure those."
)


def table(rows: Sequence[Row]) -> list[str]:
    """One row for each cell, in the order given."""
    return [*HEAD, *(_line(row) for row in rows)]


def _line(row: Row) -> str:
    return (
        f"| {row.encoder} {row.variant} | {row.tables or '–'} | {row.after_block} | {row.rounds} "
        f"| {row.vision_ms.median:.1f} | {_spread(row.vision_ratio)} "
        f"| {_paper(row.vision_paper)} | {row.vision_theory:.3f} "
        f"| {row.tokens_per_second.median:.2f} | {_spread(row.tokens_ratio)} "
        f"| {_paper(row.tokens_paper)} | {row.tokens_theory:.3f} |"
    )


def laws_of(laws: Laws) -> list[str]:
    """What the places of LaCo on one encoder add up to."""
    law, line = laws.affine, laws.with_constant
    return [
        f"{laws.encoder}: VT(k)/VT(1) = {law.constant:.3f} {law.slope:+.3f} k/L "
        f"(R² = {law.r_squared:.4f}); = {line.constant:.3f} {line.slope:+.3f} T(k), T theory "
        f"(constant {laws.constant_ms:.1f} ms), no place further from it than "
        f"{laws.worst_points:.1f} points. Asked are R² >= {LAW_R_SQUARED} and {LAW_POINTS:.0f} "
        f"points: {'met' if laws.met else 'missed'}.",
    ]


def against_paper(rows: Sequence[Row]) -> list[str]:
    """Where each encoder lies against the paper, in points of VT(k)/VT(1)."""
    lines = []
    for row in rows:
        if row.vision_paper is None or row.variant == paper.REFERENCE:
            continue
        low, high = min(row.vision_paper), max(row.vision_paper)
        ours = row.vision_ratio.median
        off = ours - min(max(ours, low), high)
        where = "within the paper's two" if off == 0 else f"{100 * off:+.1f} points from the paper"
        lines.append(
            f"{row.encoder} {row.variant}: {ours:.3f}, paper {_paper(row.vision_paper)}: {where}; "
            f"{100 * (ours - row.vision_theory):+.1f} points from theory."
        )
    return lines


def report(
    title: str,
    rows: Sequence[Row],
    laws: Sequence[Laws],
    unfinished: Sequence[str],
    *,
    tiny: bool,
) -> str:
    """The whole text.

    Args:
        title: the settings in words.
        rows: of all encoders.
        laws: of those with enough places.
        unfinished: encoders whose rounds are not whole.
        tiny: says that these ratios are not those of the paper's shapes.
    """
    lines = [
        f"# VT and TPS of the paper's Tables 1, 4 and 8\n\n{title}\n",
        "Ratios are medians of rounds, with 10th to 90th percentile; the paper's columns are "
        f"{' / '.join(paper.SETTINGS)} training; T counts operations.\n",
        *table(rows),
        "",
        *(line for law in laws for line in laws_of(law)),
        "",
        *([TINY] if tiny else against_paper(rows)),
    ]
    if unfinished:
        lines += ["", f"Not whole yet: {', '.join(unfinished)}. The same command goes on."]
    return "\n".join(lines) + "\n"


def _spread(value: Spread) -> str:
    return f"{value.median:.3f} ({value.p10:.3f}–{value.p90:.3f})"


def _paper(values: Sequence[float] | None) -> str:
    return "–" if values is None else " / ".join(f"{value:.3f}" for value in values)


__all__ = ["against_paper", "laws_of", "report", "table"]
