"""The figures of the report (matplotlib, saved as SVG and PNG)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from laco_deploy.training.compare.statistics import Rows, accuracy
from laco_deploy.training.compare.studies import Studies, share_right
from laco_deploy.training.compare.tables import seconds

COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "laco": "#0f766e",
        "pixel_shuffle": "#d97706",
        "pixel_shuffle + shortcut": "#92400e",
        "ldpv2": "#7c3aed",
        "token_packer": "#be123c",
        "avg_pool": "#0369a1",
        "no merger": "#64748b",
    }
)
_GRID = "#e5e7eb"
_TEXT = "#1f2937"
_SHARE = "exact match, %"


def save_figures(studies: Studies, folder: Path) -> None:
    """Draw all figures for which there are results, as `methods.svg`, `methods.png` and so on."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "text.color": _TEXT,
            "axes.labelcolor": _TEXT,
            "svg.hashsalt": "laco",  # the same figures give the same bytes
        }
    ):
        for name, draw in FIGURES.items():
            figure = draw(studies)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=144, metadata={"Software": None})


def methods_figure(studies: Studies) -> Any:
    """Exact match of every method, by group of pictures: mean, deviation and every seed."""
    names = [n for n in (*studies.methods, "no merger") if studies.rows(n)]
    groups = (None, *studies.groups)
    figure = _figure(11, 0.45 * len(names) + 1.3)
    panels = figure.subplots(1, len(groups), sharey=True)
    for panel, group in zip(panels, groups, strict=True):
        for place, name in enumerate(names):
            _dots(panel, studies.rows(name), place, COLOURS[name], group)
        floor = 100 * share_right(studies.reference("guesses"), group)
        panel.axvline(floor, color=_TEXT, linestyle=":", linewidth=1)
        panel.set_title(group or "all", fontsize=10)
        panel.set_xlabel(_SHARE)
        panel.grid(axis="x", color=_GRID)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return figure


def cost_figure(studies: Studies) -> Any:
    """Exact match against operations in the encoder: LaCo at every place, the others at 1/4."""
    figure = _figure(7, 4.4)
    axes = figure.subplots()
    line = []
    for place in studies.budget.positions:
        rows = studies.rows("laco", after_block=place)
        if rows:
            line.append((*_cost_and_share(rows), f"@{studies.share(place)}"))
    if line:
        costs, means, deviations, labels = zip(*line, strict=True)
        axes.errorbar(
            costs, means, deviations, fmt="o-", color=COLOURS["laco"], capsize=3, label="laco"
        )
        for cost, mean, label in zip(costs, means, labels, strict=True):
            axes.annotate(label, (cost, mean), textcoords="offset points", xytext=(6, -13))
    for name in (*studies.methods[1:], "no merger"):
        rows = studies.rows(name)
        if rows:
            cost, mean, deviation = _cost_and_share(rows)
            axes.errorbar(
                cost, mean, deviation, fmt="s", color=COLOURS[name], capsize=3, label=name
            )
    axes.set_xlabel("operations in the encoder, MFLOP an image")
    axes.set_ylabel(_SHARE)
    axes.grid(color=_GRID)
    axes.legend(frameon=False, fontsize=9)
    return figure


def decline_figure(studies: Studies) -> Any:
    """Counterpart of the paper's Figure 4: what a place costs and saves against LaCo@1."""
    blocks = studies.budget.recipe.vision_blocks
    last = studies.rows("laco", after_block=blocks)
    figure = _figure(7, 3.6)
    axes = figure.subplots()
    places = [
        place
        for place in studies.budget.positions
        if place != blocks and studies.rows("laco", after_block=place)
    ]
    if not last:
        axes.text(0.5, 0.5, "LaCo@1 has not run yet", ha="center", transform=axes.transAxes)
        return figure
    bars: dict[str, list[float]] = {
        "exact match": [],
        "training time": [],
        "operations in the encoder": [],
    }
    for place in places:
        rows = studies.rows("laco", after_block=place)
        one, other = next(iter(rows.values())), next(iter(last.values()))
        pairs = (
            (accuracy(rows).mean, accuracy(last).mean),
            (seconds(rows).mean, seconds(last).mean),
            (one.encoder_operations, other.encoder_operations),
        )
        for key, (value, whole) in zip(bars, pairs, strict=True):
            bars[key].append(100 * (value / whole - 1) if whole else 0.0)
    for number, (key, values) in enumerate(bars.items()):
        spots = [at + 0.26 * (number - 1) for at in range(len(places))]
        colour = ("#0f766e", "#d97706", "#94a3b8")[number]
        drawn = axes.bar(spots, values, width=0.24, color=colour, label=key)
        axes.bar_label(drawn, [f"{value:+.0f}" for value in values], fontsize=8, padding=2)
    axes.set_xticks(range(len(places)), [f"LaCo@{studies.share(place)}" for place in places])
    axes.set_ylabel("change against LaCo@1, %")
    axes.axhline(0, color=_TEXT, linewidth=0.8)
    axes.margins(y=0.15)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def rates_figure(studies: Studies) -> Any:
    """Exact match of every method under the plans of rates."""
    plans = [name for name in studies.budget.rate_plans if studies.rows("laco", rates=name)]
    names = [n for n in studies.methods if any(studies.rows(n, rates=p) for p in plans[1:])]
    figure = _figure(11, 0.4 * max(len(names), 2) + 1.4)
    panels = figure.subplots(1, max(len(plans), 1), sharey=True, sharex=True, squeeze=False)[0]
    for panel, name in zip(panels, plans, strict=False):
        for place, method in enumerate(names):
            rows = studies.rows(method, rates=name)
            if rows:
                _dots(panel, rows, place, COLOURS[method], None)
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel(_SHARE)
        panel.grid(axis="x", color=_GRID)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return figure


def losses_figure(studies: Studies) -> Any:
    """Training loss of every method, mean over the seeds."""
    figure = _figure(7, 4.0)
    axes = figure.subplots()
    for name in (*studies.methods, "no merger"):
        curves = [row.losses for row in studies.rows(name).values()]
        if curves:
            steps = [step for step, _ in curves[0]]
            means = [
                sum(points) / len(points)
                for points in zip(*([loss for _, loss in curve] for curve in curves), strict=True)
            ]
            axes.plot(steps, means, color=COLOURS[name], label=name)
    axes.axvline(studies.budget.stage1_steps, color=_TEXT, linestyle=":", linewidth=1)
    axes.set_xlabel("step (stage 2 begins at the dotted line)")
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    axes.grid(color=_GRID)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _dots(panel: Any, rows: Rows, place: float, colour: str, group: str | None) -> None:
    spread = accuracy(rows, group)
    deviation = 100 * (spread.deviation or 0.0)
    panel.errorbar(100 * spread.mean, place, xerr=deviation, fmt="o", color=colour, capsize=3)
    values = [100 * value for value in spread.values]
    panel.plot(values, [place + 0.22] * len(values), "|", color=colour, markersize=5)


def _cost_and_share(rows: Rows) -> tuple[float, float, float]:
    spread, one = accuracy(rows), next(iter(rows.values()))
    return one.encoder_operations / 1e6, 100 * spread.mean, 100 * (spread.deviation or 0.0)


FIGURES = MappingProxyType(
    {
        "methods": methods_figure,
        "cost": cost_figure,
        "decline": decline_figure,
        "rates": rates_figure,
        "losses": losses_figure,
    }
)
"""By file name."""

__all__ = ["FIGURES", "save_figures"]
