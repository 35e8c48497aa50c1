"""The table, the headline and the remarks say what a report holds."""

from __future__ import annotations

import dataclasses
import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from laco_deploy.benchmark.facts import facts
from laco_deploy.benchmark.remarks import notes, repeat_command
from laco_deploy.benchmark.schema import BenchReport
from laco_deploy.benchmark.table import compared, headline, main_result, number, rows, to_rich
from laco_deploy.cli import build_app
from tests.benchmark.made import THREE, Made, report_of, sweep_of

EXACT = report_of(noise=0)
"""laco 100 + 60 ms, external 220 + 60, uncompressed 215 + 240, and 9 ms for the rest."""


def terminal(report: BenchReport, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(to_rich(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_shows_medians_ranges_and_speedups() -> None:
    assert [one.name for one in compared(EXACT)] == ["laco", "external"]
    cells = {row.label: [*map(str, (*row.cells, *row.speedups))] for row in rows(EXACT)}
    assert cells["visual tokens"] == ["256", "256", "1024", "", ""]
    assert cells["vision encoder, ms"] == [
        *("100 (100–100)", "220 (220–220)", "215 (215–215)"),
        *("2.15× (2.15–2.15)", "0.98× (0.98–0.98)"),
    ]
    assert cells["first token, ms"][0] == "169 (169–169)"
    assert cells["cold start, ms"][0] == "2400"
    assert cells["energy, J"] == ["33.0", "45.0", "44.5", "", ""]


def test_every_length_of_answer_has_its_time_rate_and_speedup() -> None:
    cells = {row.label: row for row in rows(EXACT)}
    for length in (6, 64, 256):
        tpot, whole = 12 + 256 / 500, 12 + 1024 / 500
        time = 169 + (length - 1) * tpot
        ratio = (464 + (length - 1) * whole) / time
        assert cells[f"{length} tokens, ms"].cells[0].value == number(time)
        assert cells[f"{length} tokens, ms"].speedups[0].value == f"{ratio:.2f}×"
        assert cells[f"{length} tokens, per second"].cells[0].value == number(1000 * length / time)


def test_range_of_a_speedup_is_its_confidence_interval() -> None:
    report = report_of(noise=0.1)
    speedup = report.results[0].speedup_over_uncompressed
    assert speedup is not None
    cells = {row.label: row.speedups[0] for row in rows(report)}
    expected = f"{speedup.ttft.ci95_low:.2f}–{speedup.ttft.ci95_high:.2f}"
    assert cells["first token, ms"].range == expected
    assert f"(95 % confidence {expected})" in headline(report)


def test_quantity_that_no_entry_has_takes_no_line() -> None:
    labels = [row.label for row in rows(report_of(energy=False))]
    assert "energy, J" not in labels
    assert "device memory, MB" not in labels
    assert "peak memory, MB" in labels


FOUR = (
    THREE[0],
    dataclasses.replace(THREE[0], name="downsampled", variant="downsampled"),
    *THREE[1:],
)
EIGHT = sweep_of((2, 6, 12), ("fp32", "int8"))


@pytest.mark.parametrize("made", [THREE, FOUR, EIGHT], ids=["3", "4", "8"])
def test_terminal_table_loses_no_number_in_80_columns(made: tuple[Made, ...]) -> None:
    report = report_of(made, noise=0.1)
    text = terminal(report)
    assert "…" not in text
    words = set(text.split())
    for result in report.results:
        for quantity in (result.vision_encode_ms, result.prefill_ms, result.ttft_ms):
            assert number(quantity.median) in words
        assert set(result.name.split()) <= words
    speedup = main_result(report).speedup_over_uncompressed
    assert speedup is not None
    assert f"({speedup.ttft.ci95_low:.2f}–{speedup.ttft.ci95_high:.2f})" in words


def test_terminal_table_shows_ranges_where_they_fit_and_stays_on_one_screen() -> None:
    report = report_of()
    spread = f"({rows(report)[3].cells[0].range})"
    wide, narrow = terminal(report, width=120), terminal(report, width=80)
    assert spread in wide
    assert spread not in narrow
    for text in (wide, narrow):
        assert text.count("\n") <= 25
        assert f"({rows(report)[3].speedups[0].range})" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (99.94, "99.9"),
        (99.96, "100"),
        (1234.5, "1234"),
    ],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_headline_is_the_ratio_to_the_first_token() -> None:
    assert headline(EXACT).startswith(f"{464 / 169:.2f}× as fast to the first token as uncomp")
    assert "256 visual tokens instead of 1024" in headline(EXACT)


def test_headline_of_a_sweep_names_the_entry() -> None:
    report = report_of(sweep_of((2, 6), ("fp32", "int8")))
    assert headline(report).startswith("laco after_block=2 precision=fp32: ")


def test_headline_is_never_about_a_baseline_that_was_not_trained() -> None:
    report = report_of([THREE[1], THREE[0], THREE[2]])
    assert main_result(report).name == "laco"


def test_without_a_baseline_the_headline_has_no_ratio_and_a_note_says_how_to_add_it() -> None:
    report = report_of(THREE[:1])
    assert compared(report) == []
    assert "×" not in headline(report)
    assert any("laco export --baseline" in note for note in notes(report))
    assert not any("latency only" in note for note in notes(report))


def test_baselines_are_said_to_be_for_latency_only() -> None:
    assert any("latency only" in note for note in notes(EXACT))


def test_what_failed_or_is_not_available_is_said_with_its_reason() -> None:
    report = report_of(energy=False, failed={"external": "the engine refused", "limits": "no room"})
    found = [*notes(report)]
    assert "external is missing: the engine refused." in found
    assert "limits is missing: no room." in found
    assert "Energy is not available: no permission to read RAPL." in found


def test_disturbances_that_were_noticed_are_said() -> None:
    quality = EXACT.quality.model_copy(update={"notes": ("Others took 30 % of the processor.",)})
    assert "Others took 30 % of the processor." in [*notes(report_of(quality=quality))]


def test_stages_that_do_not_add_up_and_overhead_are_said_beyond_their_bounds() -> None:
    def found(error: float, overhead: float) -> str:
        extra = {"stage_sum_error": error, "overhead_share": overhead}
        made = dataclasses.replace(THREE[0], extra=extra)
        return "\n".join(notes(report_of([made, THREE[2]])))

    assert "add up to" not in found(-0.029, 0.009)
    assert "work of the benchmark" not in found(-0.029, 0.009)
    assert "add up to -4.0%" in found(-0.04, 0)
    assert "laco: 1.5% of a request is work of the benchmark" in found(0, 0.015)


def test_facts_tell_the_machine_and_what_disturbed_it() -> None:
    found = dict(facts(EXACT))
    assert found["processor"] == "Some CPU @ 3 GHz, x86_64"
    assert found["matrix rate"] == "120 GFLOP/s in fp32"
    assert found["memory bandwidth"] == "11.0 GB/s"
    assert found["other programs"].startswith("1.0%")
    assert found["processor clock"] == "2900 MHz at the start, 2850 MHz at the end"
    assert "ab" * 32 in found["bundle"]


@pytest.mark.parametrize(
    ("report", "engine", "ckpt"),
    [(EXACT, Path("engine"), None), (report_of(sweep_of((2, 6), ("fp32",))), None, Path("ckpt"))],
    ids=["bundle", "sweep"],
)
def test_command_to_repeat_is_one_that_the_command_line_takes(
    report: BenchReport, engine: Path | None, ckpt: Path | None
) -> None:
    words = shlex.split(repeat_command(report))
    assert words[0] == "laco"
    _, bound, _ = build_app().parse_args(words[1:], exit_on_error=False)
    expected = {"engine": engine, "ckpt": ckpt, "repeat": Path("bench.json")}
    assert bound.arguments == {name: path for name, path in expected.items() if path is not None}
