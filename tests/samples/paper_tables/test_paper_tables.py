"""What samples/paper_tables measures, keeps and says; never its times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from laco_runtimes.errors import ArgumentError, DataError
from samples.paper_tables import __main__ as program
from samples.paper_tables import paper
from samples.paper_tables.cells import ENCODERS, Cell, cells_of, text_config, theory
from samples.paper_tables.findings import Laws, fit, laws, rows
from samples.paper_tables.measure import measure
from samples.paper_tables.record import Record, Sample, pairs
from samples.paper_tables.system import LanguageModel, Request, TorchSystem
from samples.paper_tables.tables import against_paper, laws_of

VARIANTS = ["LaCo@1/12", "LaCo@1/6", "LaCo@1/4", "LaCo@1/2", "LaCo@1"]
VARIANTS += ["Pixel-Shuffle@1/4", "LDPv2@1/4", "TokenPacker@1/4"]
CONSTANT, COMPUTE = 0.25, 2.0
LANGUAGE_S = 3.0


class LawAbiding:
    """Answers in CONSTANT + COMPUTE T(k) seconds, and keeps a clock that only it moves."""

    def __init__(self, cells: list[Cell], slow_rounds: tuple[int, ...] = ()) -> None:
        self.asked: list[str] = []
        self.now = 0.0
        self._theory = theory(cells, reference(cells))
        self._cells, self._slow = len(cells), slow_rounds

    def clock(self) -> float:
        return self.now

    def ask(self, cell: Cell) -> Request:
        factor = 3.0 if len(self.asked) // self._cells in self._slow else 1.0
        self.asked.append(cell.variant)
        vision = CONSTANT + COMPUTE * self._theory[cell.name]
        self.now += factor * (vision + LANGUAGE_S)
        return Request(factor * vision, factor * 1.0, factor * (LANGUAGE_S - 1), 6)


def reference(cells: list[Cell]) -> Cell:
    return next(cell for cell in cells if cell.variant == paper.REFERENCE)


def run(record: Record, cells: list[Cell], system: LawAbiding, deadline: float = 1e9) -> bool:
    return measure(
        record,
        cells,
        reference(cells),
        lambda: system,
        rounds=3,
        deadline=deadline,
        clock=system.clock,
    )


def found_laws(record: Record, cells: list[Cell]) -> Laws:
    samples = {cell.name: record.samples(cell) for cell in cells}
    law = laws(rows(cells, reference(cells), samples))
    assert law is not None
    return law


@pytest.mark.parametrize(
    ("encoder", "places", "theory_of_places"),
    [
        # The ratios of method.md 8.2, which count no projector.
        ("aimv2", [2, 4, 6, 12, 24], [0.292, 0.357, 0.421, 0.614, 1]),
        ("siglip", [2, 4, 6, 13, 26], [0.311, 0.368, 0.426, 0.627, 1]),
        ("internvit", [2, 4, 6, 12, 24], [0.292, 0.357, 0.421, 0.614, 1]),
    ],
)
def test_cells_are_the_papers_at_full_size_with_its_theory(
    encoder: str, places: list[int], theory_of_places: list[float]
) -> None:
    cells = cells_of(encoder)
    assert [cell.variant for cell in cells] == VARIANTS
    assert [cell.after_block for cell in cells] == [*places, *[places[2]] * 3]
    shares = theory(cells, reference(cells))
    assert [shares[cell.name] for cell in cells[:5]] == pytest.approx(theory_of_places, abs=3e-3)
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.config.tokens_per_tile for cell in cells} == {196 if encoder == "siglip" else 256}


def test_every_cell_of_the_paper_is_measured_and_its_ratios_are_its_own() -> None:
    ours = {(name, cell.variant) for name in ENCODERS for cell in cells_of(name, tiny=True)}
    assert set(paper.PUBLISHED) <= ours
    vision, tokens = paper.ratios("aimv2", "LaCo@1/4") or ((), ())
    assert vision == pytest.approx((0.505, 0.512), abs=1e-3)
    assert tokens == pytest.approx((1.142, 1.150), abs=1e-3)
    assert paper.ratios("siglip", "LaCo@1/2") is None


@pytest.mark.parametrize("encoder", ENCODERS)
def test_tiny_shrinks_width_and_depth_and_keeps_the_kind_and_every_place(encoder: str) -> None:
    tiny, full = cells_of(encoder, tiny=True), cells_of(encoder)
    assert [cell.after_block for cell in tiny[:5]] == [1, 2, 3, 6, 12]
    for small, large in zip(tiny, full, strict=True):
        assert small.name.split("-")[:2] == large.name.split("-")[:2]
        assert small.gflop < large.gflop / 1000
        one, two = small.config.vision, large.config.vision
        assert one.model_type == two.model_type
        assert (one.num_hidden_layers, one.hidden_size) < (two.num_hidden_layers, two.hidden_size)
        assert small.config.patch_grid[0] % 2 == large.config.patch_grid[0] % 2
        assert small.config.text.hidden_size < large.config.text.hidden_size


def test_cells_share_a_tower_and_answer_with_as_many_tokens_as_asked() -> None:
    torch.manual_seed(0)
    ticks = iter(range(10_000))
    cells = cells_of("siglip", tiny=True)
    seen: list[tuple[int, ...]] = []

    class Watched(LanguageModel):
        def answer(self, visual, clock):  # type: ignore[no-untyped-def]
            assert torch.isfinite(visual).all()
            seen.append(tuple(visual.shape))
            return super().answer(visual, clock)

    language = Watched(text_config(tiny=True), torch.float32, text_tokens=4, new_tokens=3)
    system = TorchSystem(cells, language, torch.float32, "eager", lambda: float(next(ticks)))
    assert len({id(one.tower) for one in system._encoders.values()}) == 1
    assert system._encoders[cells[0].name].tower.config._attn_implementation == "eager"
    for cell in cells:
        assert system.ask(cell) == Request(1.0, 1.0, 1.0, 3)  # a clock that counts its readings
    assert seen == [(1, 16, 64)] * len(cells)  # 7 x 7 patches, padded to 8 x 8


def test_tokens_per_second_count_the_whole_request() -> None:
    assert Request(1.0, 0.5, 0.5, 6).tokens_per_second == 3.0


def test_measured_system_that_keeps_the_law_is_found_to_keep_it_even_if_a_round_is_slow(
    tmp_path: Path,
) -> None:
    cells = cells_of("aimv2", tiny=True)
    record = Record(tmp_path, {})
    system = LawAbiding(cells, slow_rounds=(2,))
    assert run(record, cells, system)
    assert system.asked[:8] == VARIANTS  # warm-up, then every cell once in a round
    for start in (8, 16, 24):
        assert sorted(system.asked[start : start + 8]) == sorted(VARIANTS)
    assert system.asked[8] != system.asked[16]  # none always follows the same one
    law = found_laws(record, cells)
    whole = CONSTANT + COMPUTE
    assert law.with_constant.constant == pytest.approx(CONSTANT / whole)
    assert law.with_constant.slope == pytest.approx(COMPUTE / whole)
    assert law.constant_ms == pytest.approx(1e3 * CONSTANT)
    assert law.worst_points == pytest.approx(0, abs=1e-6)
    assert law.met
    assert laws_of(law)[0].endswith("met.")
    table = rows(cells, reference(cells), {cell.name: record.samples(cell) for cell in cells})
    for row in table:
        vision = CONSTANT + COMPUTE * row.vision_theory
        assert row.vision_ratio.median == pytest.approx(vision / whole)
        faster = (whole + LANGUAGE_S) / (vision + LANGUAGE_S)
        assert row.tokens_ratio.median == pytest.approx(faster)
        in_theory = (whole + LANGUAGE_S) / (whole * row.vision_theory + LANGUAGE_S)
        assert row.tokens_theory == pytest.approx(in_theory)
        assert row.rounds == 3


def test_stopped_run_goes_on_and_pairs_only_what_ran_together(tmp_path: Path) -> None:
    cells = cells_of("aimv2", tiny=True)
    first = LawAbiding(cells)
    # A request is counted when it was begun in time: 8 of warm-up and 8 + 3 of the rounds.
    steps = LawAbiding(cells)
    for cell in (*cells, *cells[1:], cells[0], *cells[2:4]):
        steps.ask(cell)
    assert not run(Record(tmp_path, {}), cells, first, deadline=steps.now + 0.001)
    assert len(first.asked) == 19
    kept = {cell.variant: len(Record(tmp_path, {}).samples(cell)) for cell in cells}
    assert sum(kept.values()) == 11

    second = LawAbiding(cells)
    record = Record(tmp_path, {})
    assert run(record, cells, second)
    # Warm-up, the rest of round 2 (LaCo@1 was in it before, so once more), all of round 3.
    assert len(second.asked) == 8 + (5 + 1) + 8
    whole = record.samples(reference(cells))
    for cell in cells:
        samples = record.samples(cell)
        assert {sample.round for sample in samples} == {1, 2, 3}
        assert len(pairs(samples, whole)) >= 3
    assert run(record, cells, second)  # nothing is left to do
    assert found_laws(record, cells).met


def test_requests_of_two_sittings_are_not_paired() -> None:
    one, two = Request(1, 1, 1, 1), Request(2, 1, 1, 1)
    mine = [Sample(1, "a", one), Sample(2, "b", two)]
    assert pairs(mine, [Sample(1, "a", two), Sample(2, "a", two)]) == [(one, two)]


def test_round_that_stopped_without_its_reference_measures_it_again(tmp_path: Path) -> None:
    cells = cells_of("aimv2", tiny=True)
    record = Record(tmp_path, {})
    for cell in cells[4:]:  # LaCo@1 and those behind it
        for number in (1, 2, 3):
            record.add(cell, Sample(number, "before", Request(1, 1, 1, 6)))
    system = LawAbiding(cells)
    assert run(record, cells, system)
    assert len(system.asked) == 8 + 3 * 5
    assert system.asked[8:].count("LaCo@1") == 3
    assert len(record.samples(reference(cells))) == 6


def test_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    Record(tmp_path, {"dtype": "fp32", "threads": 2})
    with pytest.raises(ArgumentError, match="dtype 'fp32', now 'bf16'"):
        Record(tmp_path, {"dtype": "bf16", "threads": 2})


@pytest.mark.parametrize("text", ["{", "[{}]", "7"])
def test_damaged_cell_is_named(tmp_path: Path, text: str) -> None:
    cell = cells_of("aimv2", tiny=True)[0]
    record = Record(tmp_path, {})
    (tmp_path / f"{cell.name}.json").write_text(text)
    with pytest.raises(DataError, match=cell.name):
        record.samples(cell)


def test_line_through_the_papers_own_figures_has_its_published_coefficients() -> None:
    line = fit([1 / 12, 1 / 6, 1 / 4, 1 / 2, 1], [23.5, 26.2, 29.3, 39.0, 58.0])
    assert (line.constant, line.slope) == pytest.approx((20.0, 37.9), abs=0.05)
    assert line.r_squared == pytest.approx(0.9998, abs=1e-4)


def test_distance_from_the_paper_counts_from_the_nearer_of_its_two_figures(tmp_path: Path) -> None:
    cells = cells_of("internvit", tiny=True)
    record = Record(tmp_path, {})
    for cell in cells:
        share = {"LaCo@1": 1.0, "LaCo@1/4": 0.45}.get(cell.variant, 0.5)
        record.add(cell, Sample(1, "a", Request(share, 1, 1, 6)))
    found = rows(cells, reference(cells), {cell.name: record.samples(cell) for cell in cells})
    (line,) = against_paper(found)
    share = theory(cells, reference(cells))["internvit-laco-3"]
    assert line.startswith("internvit LaCo@1/4: 0.450, paper 0.403 / 0.406: +4.4 points")
    assert f"{100 * (0.45 - share):+.1f} points from theory" in line


def test_program_measures_writes_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "tables"
    arguments = ["--work", str(work), "--tiny", "--encoders", "siglip", "--threads", "1"]
    assert program.main([*arguments, "--rounds", "1", "--minutes", "0"]) == 1
    assert "Not whole yet: siglip" in capsys.readouterr().out
    assert program.main([*arguments, "--rounds", "1"]) == 0
    out = capsys.readouterr()
    assert "8 of 8" in out.err
    body = [line for line in out.out.splitlines() if line.startswith("| siglip")]
    assert [line.split(" | ")[0].removeprefix("| siglip ") for line in body] == VARIANTS
    assert out.out == (work / "tables.md").read_text()
    figures = json.loads((work / "tables.json").read_text())
    assert [row["variant"] for row in figures["rows"]] == VARIANTS
    assert figures["unfinished"] == []
    assert figures["settings"]["size"] == "tiny"
    assert program.main([*arguments, "--rounds", "1"]) == 0
    assert "8 of 8" not in capsys.readouterr().err  # nothing was measured again
    assert program.main([*arguments, "--rounds", "1", "--dtype", "bf16"]) == 2
    assert "other settings" in capsys.readouterr().err
