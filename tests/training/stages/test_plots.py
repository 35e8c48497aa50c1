"""Plots of a run's log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from laco_deploy.training.plots import draw_plots, smooth


def test_a_running_mean_looks_back_only() -> None:
    assert smooth([1.0, 3.0, 5.0, 7.0], 2) == pytest.approx([1, 2, 4, 6])
    assert smooth([], 3) == []


def test_plots_show_the_entries(tmp_path: Path) -> None:
    entries = [
        {"step": n, "loss": 5 / n, "learning_rate/merger": 1e-3 / n, "learning_rate/tower": 1e-5}
        for n in range(1, 40)
    ]
    files = draw_plots(
        [*entries, {"step": 39, "eval_anls": 0.5, "eval_exact_match": 0.25}], tmp_path
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learning_rates.png", "loss.png"]
    for path in files:
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        coloured = np.ptp(pixels, axis=2) > 80  # a line, not frame or text
        assert coloured.sum() > 300


def test_a_run_without_a_step_has_no_plot(tmp_path: Path) -> None:
    assert draw_plots([{"step": 1, "eval_anls": 0.0}], tmp_path) == []
    assert list(tmp_path.iterdir()) == []
