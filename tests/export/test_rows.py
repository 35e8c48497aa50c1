"""Answers that grow together say what each says alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from laco_export.parity.rows import Rows
from laco_export.session import brief_session
from laco_runtimes.graphs import GraphSpec
from tests.export.flavour_engines import FACTS

STEPS = 4
GENERATOR = np.random.default_rng(0)


@pytest.fixture
def rows(flavours: dict[str, tuple[Path, GraphSpec]]) -> Rows:
    path, _ = flavours["stateful"]
    return Rows(brief_session(path, path.parent), FACTS)


def embeds(tokens: int) -> NDArray[np.float32]:
    return GENERATOR.normal(size=(tokens, FACTS.hidden_size)).astype(np.float32)


@pytest.mark.parametrize("lengths", [(7, 12, 9), (7,), (5, 5)])
def test_rows_of_any_lengths_have_the_logits_of_one_pass_over_each(
    rows: Rows, lengths: tuple[int, ...]
) -> None:
    for _ in range(2):  # the second time behind `clear`
        prompts, answers = [embeds(one) for one in lengths], [embeds(STEPS) for _ in lengths]
        found = [np.stack([rows.add(prompt) for prompt in prompts])]
        found += [rows.step(np.stack(tokens)) for tokens in zip(*answers, strict=True)]
        rows.clear()
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            for step, logits in enumerate(found):
                whole = rows.add(np.concatenate([prompt, answer[:step]]))
                np.testing.assert_allclose(logits[row], whole, atol=1e-4)
        rows.clear()


def test_a_row_beyond_the_models_last_position_disturbs_no_other(rows: Rows) -> None:
    """It belongs to an answer that has ended there."""
    full, short, tokens = embeds(FACTS.max_positions), embeds(3), embeds(2)
    rows.add(full)
    rows.add(short)
    found = [rows.step(np.stack([token, token]))[1] for token in tokens]
    rows.clear()
    whole = rows.add(np.concatenate([short, tokens]))
    np.testing.assert_allclose(found[-1], whole, atol=1e-4)


def test_a_row_that_comes_late_is_refused(rows: Rows) -> None:
    rows.add(embeds(3))
    rows.add(embeds(2))
    rows.step(embeds(2))
    with pytest.raises(ValueError, match="Clear"):
        rows.add(embeds(3))
