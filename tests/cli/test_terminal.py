"""What commands tell of how far they are, in a terminal and in a log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from laco_deploy.terminal import Advance, stage_bar, stage_bars, stage_lines

Stages = Callable[[], AbstractContextManager[Advance]]


def test_a_log_has_a_line_for_each_stage_and_for_each_half_minute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([0.0, 1.0, 2.0, 3.0, 20.0, 34.0])
    now = [next(times)]
    advance = stage_lines(lambda: now[0])
    for done, stage in enumerate(("load", "load", "ask", "ask", "ask")):
        now[0] = next(times)
        advance(stage, done, 9)
    assert capsys.readouterr().err.splitlines() == [
        "load: 0 of 9",
        "ask: 2 of 9",
        "ask: 4 of 9",
    ]


@pytest.mark.parametrize("stages", [stage_bar, stage_bars])
def test_what_is_no_terminal_gets_lines(
    stages: Stages, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with stages() as advance:
        advance("load", 0, 2)
        advance("load", 1, 2)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "load: 0 of 2\n")


@pytest.mark.parametrize("stages", [stage_bar, stage_bars])
def test_a_terminal_gets_a_bar_that_goes_at_the_end(
    stages: Stages, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes that for a terminal
    monkeypatch.setenv("TERM", "xterm")
    with stages() as advance:
        advance("load", 1, 2)
        advance("ask", 2, 3)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "ask" in printed.err
    assert printed.err.endswith("\x1b[2K")
