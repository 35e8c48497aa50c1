"""Loss and learning rates of a run as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOSS_PLOT, RATES_PLOT = "loss.png", "learning_rates.png"
_RATE = "learning_rate/"
_WINDOW = 50


def draw_plots(entries: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write the plots of a run; what a run has not logged is left out.

    Args:
        entries: of its `log.jsonl`, with `step` and `loss`, `learning_rate/<part>`, and from
            held-out questions `eval_exact_match` and `eval_anls`.
        folder: to write into.

    Returns:
        The files written.
    """
    steps = [entry for entry in entries if "loss" in entry]
    if not steps:
        return []
    asked = [entry for entry in entries if "eval_anls" in entry]
    return [_draw_loss(steps, asked, folder / LOSS_PLOT), _draw_rates(steps, folder / RATES_PLOT)]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and those before it, `window` at most."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means


def _draw_loss(
    steps: Sequence[dict[str, Any]], asked: Sequence[dict[str, Any]], path: Path
) -> Path:
    figure, axes = _figure()
    x, losses = [e["step"] for e in steps], [e["loss"] for e in steps]
    axes.plot(x, losses, color="tab:blue", alpha=0.35, linewidth=0.8, label="loss")
    window = min(_WINDOW, len(losses) // 10)
    if window > 1:
        axes.plot(x, smooth(losses, window), color="tab:blue", label=f"mean of {window} entries")
    axes.set(xlabel="optimizer step", ylabel="training loss (nats per token)")
    if asked:
        right = axes.twinx()
        for name, colour in (("exact_match", "tab:orange"), ("anls", "tab:green")):
            values = [entry[f"eval_{name}"] for entry in asked]
            places = [entry["step"] for entry in asked]
            right.plot(places, values, marker="o", color=colour, label=name.replace("_", " "))
        right.set(ylabel="held-out questions (share)", ylim=(0, 1))
        right.legend(loc="upper right")
    axes.legend(loc="upper center" if asked else "upper right")
    return _save(figure, path)


def _draw_rates(steps: Sequence[dict[str, Any]], path: Path) -> Path:
    figure, axes = _figure()
    parts = [name for name in steps[0] if name.startswith(_RATE)]
    for number, name in enumerate(parts):
        known = [entry for entry in steps if entry.get(name)]  # a logarithm knows no 0
        axes.plot(
            [entry["step"] for entry in known],
            [entry[name] for entry in known],
            label=name.removeprefix(_RATE).replace("_", " "),
            # Parts often share a rate: a line under another shows between its dashes.
            linestyle=("-", "--", ":", "-.")[number % 4],
        )
    axes.set(xlabel="optimizer step", ylabel="learning rate")
    if axes.get_lines() and any(len(line.get_xdata()) for line in axes.get_lines()):
        axes.set(yscale="log")
    axes.legend()
    return _save(figure, path)


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: it keeps figures, and asks for a display
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    temporary = path.with_name(f".{path.name}.new")
    figure.savefig(temporary, format="png")
    temporary.replace(path)
    return path


__all__ = ["LOSS_PLOT", "RATES_PLOT", "draw_plots", "smooth"]
