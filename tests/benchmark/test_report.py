"""`bench.json`, the table and the page say what was measured, and the page loads nothing."""

from __future__ import annotations

import io
import json
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

from laco_deploy.benchmark.machine import cpu_model_from, describe_machine
from laco_deploy.benchmark.page import render_page
from laco_deploy.benchmark.run import BenchJob, run_benchmark
from laco_deploy.benchmark.schema import BenchReport
from laco_deploy.benchmark.table import (
    compared,
    headline,
    notes,
    number,
    repeat_command,
    rows,
    to_rich,
)
from laco_deploy.cli import build_app
from tests.benchmark.fakes import Bench

PROMPT = "</script><script>alert('x')</script> & \"so on\""


@pytest.fixture
def report(bundle: Path, bench: Bench, photo: Path) -> BenchReport:
    """Vision 10, 30 and 60 ms; all else alike: 24 ms before the first token, 15 ms after."""
    bench.encode_ms = {"laco": [10], "external": [30], "uncompressed": [60]}
    job = BenchJob(
        engine=bundle,
        image=photo,
        prompt=PROMPT,
        new_tokens=4,
        runs=3,
        warmup=1,
        memory=False,
    )
    return run_benchmark(job, clock=bench.clock)


def test_report_survives_a_round_trip(report: BenchReport) -> None:
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


def test_json_holds_what_a_script_looks_for(report: BenchReport) -> None:
    found = json.loads(report.model_dump_json())
    assert found["schema_version"] == 1
    laco, external, uncompressed = found["results"]
    assert [one["name"] for one in found["results"]] == ["laco", "external", "uncompressed"]
    for name in ("vision_encode", "prefill", "ttft", "tpot", "request", "preprocess", "embed"):
        assert laco[f"{name}_ms"].keys() == {"median", "p10", "p90", "runs"}
    assert laco["ttft_ms"]["median"] == 34.0
    assert laco["tokens_per_second"]["median"] == pytest.approx(4 / 0.049)
    assert laco["peak_memory_bytes"] is None
    assert laco["peak_memory_note"] == "not asked for"
    assert laco["speedup_over_uncompressed"]["vision_encode"]["median"] == 6.0
    assert external["speedup_over_uncompressed"]["vision_encode"]["median"] == 2.0
    assert uncompressed["visual_tokens"] == 16
    assert found["machine"]["usable_cores"] >= 1
    assert found["settings"]["runs"] == 3
    assert len(found["bundle"]["manifest_sha256"]) == 64


def test_report_names_no_folder_of_this_machine(report: BenchReport, bundle: Path) -> None:
    assert str(bundle.parent) not in report.model_dump_json()
    assert report.bundle.name == bundle.name


def _without_last_run(found: dict[str, Any]) -> None:
    found["results"][1]["ttft_ms"]["runs"].pop()


def _unknown_key(found: dict[str, Any]) -> None:
    found["results"][0]["ttft_s"] = 1


def _other_version(found: dict[str, Any]) -> None:
    found["schema_version"] = 2


def _negative(found: dict[str, Any]) -> None:
    found["results"][0]["ttft_ms"]["p10"] = -1


def _out_of_order(found: dict[str, Any]) -> None:
    found["results"][0]["ttft_ms"]["p10"] = 1e9


def _twice(found: dict[str, Any]) -> None:
    found["results"][1]["name"] = "laco"


@pytest.mark.parametrize(
    "spoil", [_without_last_run, _unknown_key, _other_version, _negative, _out_of_order, _twice]
)
def test_schema_refuses(spoil: Any, report: BenchReport) -> None:
    found = json.loads(report.model_dump_json())
    spoil(found)
    with pytest.raises(ValidationError):
        BenchReport.model_validate(found)


def test_schema_refuses_what_json_cannot_hold(report: BenchReport) -> None:
    found = json.loads(report.model_dump_json())
    found["results"][0]["ttft_ms"]["p90"] = float("inf")
    with pytest.raises(ValidationError):
        BenchReport.model_validate(found)


def test_table_shows_medians_ranges_and_speedups(report: BenchReport) -> None:
    assert [one.name for one in compared(report)] == ["laco", "external"]
    cells = {row.label: [*map(str, (*row.cells, *row.speedups))] for row in rows(report)}
    assert cells["visual tokens"] == ["4", "4", "16", "", ""]
    assert cells["vision encoder, ms"] == [
        *("10.0 (10.0–10.0)", "30.0 (30.0–30.0)", "60.0 (60.0–60.0)"),
        *("6.00× (6.00–6.00)", "2.00× (2.00–2.00)"),
    ]
    assert cells["first token, ms"][0] == "34.0 (34.0–34.0)"
    assert cells["peak memory, MB"][:3] == ["–", "–", "–"]


def test_terminal_table_loses_no_number_in_80_columns(report: BenchReport) -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(to_rich(report))
    text = console.file.getvalue()
    assert "…" not in text
    for value in ("10.0", "(60.0–60.0)", "6.00×", "uncompressed"):
        assert value in text


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


def test_headline_is_the_ratio_to_the_first_token(report: BenchReport) -> None:
    ratio = (60 + 24) / (10 + 24)
    assert headline(report).startswith(f"{ratio:.2f}× as fast to the first token as uncompressed")
    assert "4 visual tokens instead of 16" in headline(report)


def test_baselines_are_said_to_be_for_latency_only(report: BenchReport) -> None:
    assert any("latency only" in note for note in notes(report))


@pytest.mark.parametrize("bundle", [("laco",)], indirect=True)
def test_bundle_without_baselines_says_how_to_add_them(report: BenchReport) -> None:
    assert any("laco export --baseline" in note for note in notes(report))
    assert not any("latency only" in note for note in notes(report))
    assert compared(report) == []
    assert "×" not in headline(report)
    page = render_page(report)
    assert "laco export --baseline" in page
    assert 'class="big"' not in page


def test_command_to_repeat_is_one_that_the_command_line_takes(report: BenchReport) -> None:
    words = shlex.split(repeat_command(report))
    assert words[0] == "laco"
    _, bound, _ = build_app().parse_args(words[1:], exit_on_error=False)
    assert bound.arguments == {
        "engine": Path(report.bundle.name),
        "image": Path("photo.png"),
        "prompt": PROMPT,
        "new_tokens": 4,
        "runs": 3,
        "warmup": 1,
        "device": "auto",
    }


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._in_code = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_code = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._in_code = False

    def handle_data(self, data: str) -> None:
        if not self._in_code:
            self.text.append(data)


def test_page_loads_nothing(report: BenchReport) -> None:
    page = _Page(render_page(report))
    tags = [tag for tag, _ in page.elements]
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(tags)
    for _, attributes in page.elements:
        assert not attributes.keys() & {"src", "href", "srcset", "data", "action"}
    [policy] = [
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_page_brings_plotly_and_both_figures(report: BenchReport) -> None:
    text = render_page(report)
    page = _Page(text)
    assert "plotly.js v" in text
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {"stages", "rounds"} <= ids


def test_page_tells_the_numbers_the_machine_and_the_command(report: BenchReport) -> None:
    text = "\n".join(_Page(render_page(report)).text)
    assert "2.47×" in text
    assert "4 visual tokens instead of 16" in text
    assert report.machine.cpu_model in text
    assert repeat_command(report) in text
    assert report.bundle.manifest_sha256 in text
    for note in notes(report):
        assert note in text
    for row in rows(report):
        for cell in (*row.cells, *row.speedups):
            assert cell.value in text


def test_text_of_a_stranger_stays_text_in_the_page(report: BenchReport) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    found = report.model_dump()
    plain = _Page(render_page(report))
    found["bundle"]["name"] = found["results"][0]["name"] = found["settings"]["device"] = evil
    page = _Page(render_page(BenchReport.model_validate(found)))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]


def test_cpu_is_named_as_the_kernel_names_it() -> None:
    assert cpu_model_from("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n") == "Some CPU @ 3 GHz"
    assert cpu_model_from("processor\t: 0\nCPU part\t: 0xd42\n") == ""


def test_machine_tells_the_versions_that_are_installed() -> None:
    import onnxruntime

    machine = describe_machine("onnxruntime")
    assert machine.packages["onnxruntime"] == onnxruntime.__version__
    assert machine.cpu_model
