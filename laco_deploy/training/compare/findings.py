"""What came out, claim by claim. Every sentence is chosen by the figures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from laco_deploy.training.compare.cells import RATE_STUDIES, method_names
from laco_deploy.training.compare.statistics import (
    Difference,
    accuracy,
    difference,
    growth,
)
from laco_deploy.training.compare.studies import (
    PAPER_METHODS,
    PAPER_POSITIONS,
    PAPER_TUNING_HOURS,
    Studies,
    share_right,
)
from laco_deploy.training.compare.tables import percent, points, seconds

OPEN = "not run yet"
_RIVALS = ("pixel_shuffle", "ldpv2", "token_packer")
_COLLAPSED = 1 / 4
"""A method is called blind that keeps at most so much of what LaCo has above guessing. In the
paper's table ChartQA and DocVQA of the other methods stay under a quarter of LaCo's."""


def findings(studies: Studies) -> list[str]:
    """One Markdown paragraph per claim."""
    return [
        _rivals(studies),
        _collapse(studies),
        _shortcut(studies),
        _pooling(studies),
        *_rates(studies),
        _monotone(studies),
        _detail(studies),
        _saving(studies),
        _compression(studies),
    ]


def verdict(apart: Difference | None, *, expected: int) -> str:
    """How a difference stands to a claim about its sign (+1 or -1)."""
    if apart is None:
        return OPEN
    if not apart.is_clear:
        return "not shown: the seeds differ more"
    return "reproduced" if apart.mean * expected > 0 else "the reverse came out"


def _rivals(studies: Studies) -> str:
    laco, parts, words = studies.rows("laco"), [], []
    for rival in _RIVALS:
        apart = difference(laco, studies.rows(rival))
        paper = PAPER_METHODS["laco"] - PAPER_METHODS[rival]
        words.append(verdict(apart, expected=1))
        parts.append(f"{rival} {points(apart)}, in the paper {paper:+.1f} ({words[-1]})")
    head = _summary(words)
    return f"**LaCo is more accurate than the other methods at 1/4 (Table 1): {head}.** " + _list(
        "Points by which LaCo is ahead", parts
    )


def _summary(words: list[str]) -> str:
    if len(set(words)) == 1:
        return words[0]
    return "mixed" if OPEN not in words else "not complete yet"


def _collapse(studies: Studies) -> str:
    """Whether the other methods fall to what can be guessed, as in the paper."""
    laco = studies.rows("laco")
    if not laco:
        return f"**The other methods see next to nothing at 1/4 (Table 1): {OPEN}.**"
    floor = share_right(studies.reference("guesses"))
    above = accuracy(laco).mean - floor
    kept = {
        rival: (accuracy(studies.rows(rival)).mean - floor) / above
        for rival in _RIVALS
        if studies.rows(rival) and above > 0
    }
    blind = [rival for rival, share in kept.items() if share <= _COLLAPSED]
    if not kept:
        head = OPEN if above > 0 else "cannot be told, LaCo itself is not above guessing"
    elif len(blind) == len(kept):
        head = "reproduced"
    else:
        head = f"for {', '.join(blind)} only" if blind else "not reproduced"
    parts = [f"{rival} {100 * share:.0f} %" for rival, share in kept.items()]
    return (
        f"**The other methods see next to nothing at 1/4 (Table 1): {head}.** "
        f"The commonest answers are right in {100 * floor:.1f} % of the test. "
        + _list("Of what LaCo has above that the others keep", parts)
        + f" (At most {100 * _COLLAPSED:.0f} % is called blind here.)"
    )


def _shortcut(studies: Studies) -> str:
    with_it = studies.rows("pixel_shuffle + shortcut")
    gain = difference(with_it, studies.rows("pixel_shuffle"))
    rest = difference(studies.rows("laco"), with_it)
    return (
        "**The shortcut is what makes the difference to pixel shuffle (section 3.3): "
        f"{verdict(gain, expected=1)}.** Adding it to pixel shuffle changes {points(gain)} points. "
        f"LaCo, whose last layer starts at zero besides, has another {points(rest)}."
    )


def _pooling(studies: Studies) -> str:
    apart = difference(studies.rows("laco"), studies.rows("avg_pool"))
    if apart is None:
        head = OPEN
    elif apart.is_clear:
        head = "yes" if apart.mean > 0 else "they harm"
    else:
        head = "not shown: the seeds differ more"
    return (
        f"**Do LaCo's learned layers add to plain pooling (not in the paper)? {head}.** "
        f"LaCo less average pooling is {points(apart)} points."
    )


def _rates(studies: Studies) -> Iterator[str]:
    """Whether slow or forgotten mergers explain the paper's gap."""
    about = {
        "slow_merger": "Does a merger at the tower's rate hurt the others more than LaCo?",
        "forgotten_merger": "Does a merger that stage 1 leaves out hurt the others more than LaCo?",
    }
    laco = studies.rows("laco")
    for name, question in about.items():
        slow_laco, parts, clear = studies.rows("laco", rates=name), [], []
        for rival in method_names(RATE_STUDIES[name])[1:]:
            rows = studies.rows(rival, rates=name)
            more = growth(slow_laco, rows, laco, studies.rows(rival))
            gap = points(difference(slow_laco, rows))
            parts.append(f"{rival} {points(more)}, to a lead of {gap}")
            if more is None:
                clear.append(OPEN)
            elif more.is_clear:
                clear.append(f"{rival} ({'more' if more.mean > 0 else 'less'})")
        if OPEN in clear:
            head = OPEN if set(clear) == {OPEN} else "not complete yet"
        else:
            head = f"clearly for {', '.join(clear)}" if clear else "for none of them clearly"
        yield f"**{question} {head}.** " + _list("Points by which LaCo's lead grows", parts)


def _monotone(studies: Studies) -> str:
    places = [p for p in studies.budget.positions if studies.rows("laco", after_block=p)]
    steps = []
    for early, late in pairwise(places):
        apart = difference(
            studies.rows("laco", after_block=late), studies.rows("laco", after_block=early)
        )
        steps.append((early, late, apart))
    if len(places) < len(studies.budget.positions):
        head = "not complete yet"
    elif any(apart is not None and apart.is_clear and apart.mean < 0 for *_, apart in steps):
        head = "not reproduced, a step down is clear"
    elif all(apart is not None and apart.mean >= 0 for *_, apart in steps):
        head = "every step goes up"
    else:
        head = "up on the whole, no step down is clear"
        first, last = (
            accuracy(studies.rows("laco", after_block=places[0])),
            accuracy(studies.rows("laco", after_block=places[-1])),
        )
        if last.mean <= first.mean:
            head = "not reproduced, the last place is no better than the first"
    parts = [
        f"{studies.share(early)} to {studies.share(late)} {points(apart)}"
        for early, late, apart in steps
    ]
    paper = [f"{share} {value}" for share, value in PAPER_POSITIONS.items()]
    return (
        f"**Later places are more accurate (Table 8): {head}.** "
        + _list("Steps", parts)
        + f" The paper has {', '.join(paper)}, so a step down there too."
    )


def _detail(studies: Studies) -> str:
    """Whether fine detail suffers most from merging early."""
    last = studies.budget.recipe.vision_blocks
    early, late = studies.rows("laco"), studies.rows("laco", after_block=last)
    losses = {group: difference(early, late, group) for group in studies.groups}
    known = {group: apart for group, apart in losses.items() if apart is not None}
    if not known:
        head = OPEN
    else:
        worst = min(known, key=lambda group: known[group].mean)
        sure = "clearly" if known[worst].is_clear else "but not clearly"
        head = f"{worst} loses most, {sure}" if known[worst].mean < 0 else "no group loses"
    parts = [f"{group} {points(apart)}" for group, apart in losses.items()]
    return (
        f"**Merging at 1/4 instead of behind the encoder costs fine detail (Table 4): {head}.** "
        + _list("LaCo@1/4 less LaCo@1", parts)
        + " In the paper charts and documents lose most."
    )


def _saving(studies: Studies) -> str:
    last = studies.rows("laco", after_block=studies.budget.recipe.vision_blocks)
    early = studies.rows("laco")
    name = "**Merging at 1/4 saves time (Figure 4, Table 8):"
    if not last or not early:
        return f"{name} {OPEN}.**"
    one, other = next(iter(early.values())), next(iter(last.values()))
    encoder = 1 - one.encoder_operations / other.encoder_operations
    training = 1 - seconds(early).mean / seconds(last).mean
    paper = 1 - PAPER_TUNING_HOURS["1/4"] / PAPER_TUNING_HOURS["1"]
    return (
        f"{name} {'reproduced' if training > 0 else 'the reverse came out'}.** "
        f"{100 * encoder:.0f} % fewer operations in the encoder and {100 * training:.0f} % less "
        f"processor time in training than LaCo@1; the paper's instruction tuning takes "
        f"{100 * paper:.0f} % less."
    )


def _compression(studies: Studies) -> str:
    none = studies.rows("no merger")
    apart = difference(studies.rows("laco"), none)
    what = "" if not none else f" It has {percent(accuracy(none))} %."
    return (
        "**Against the model without a merger, trained on for the same steps (not in the "
        f"paper):** LaCo@1/4 has {points(apart)} points.{what}"
    )


def _list(title: str, parts: list[str]) -> str:
    return f"{title}: {'; '.join(parts)}."


__all__ = ["OPEN", "findings", "verdict"]
