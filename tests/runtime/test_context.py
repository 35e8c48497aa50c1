"""What of a dialogue stays when it outgrows the context, for any dialogue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laco_runtimes.context import ANSWER_SHARE, Turn, Visual, dialogue_length, fit, lay_out
from laco_runtimes.errors import ContextLengthError
from laco_runtimes.kv_state import KVState, common_length
from laco_runtimes.prompt import PromptTemplate
from tests.runtime.talker import Talker

IMAGE = 99
TEMPLATE = PromptTemplate(
    system=(1, 2, 3),
    user_open=(4, 5),
    after_image=(6,),
    user_close=(7,),
    assistant_close=(8, 9),
    stop=(8,),
    image_token_id=IMAGE,
)
words = st.lists(st.integers(10, 90), min_size=1, max_size=12).map(tuple)
visuals = st.builds(
    lambda name, tokens: Visual(digest=bytes([name]), tokens=tokens, features=None),
    st.integers(0, 255),
    st.integers(1, 9),
)
turns = st.builds(
    lambda prompt, reply, seen: Turn(
        prompt="", prompt_ids=prompt, reply_ids=reply, visuals=tuple(seen)
    ),
    words,
    # A model may well say the image token.
    st.lists(st.sampled_from([20, 21, IMAGE]), max_size=8).map(tuple),
    st.lists(visuals, max_size=3),
)
dialogues = st.lists(turns, max_size=8)


@given(dialogue=dialogues, newest=turns)
def test_a_laid_out_dialogue_is_its_turns_in_order(dialogue: list[Turn], newest: Turn) -> None:
    prompt = lay_out(TEMPLATE, dialogue, newest)
    expected = list(TEMPLATE.system)
    for turn in dialogue:
        expected += TEMPLATE.turn(turn.prompt_ids, [visual.tokens for visual in turn.visuals])
        expected += [*turn.reply_ids, *TEMPLATE.assistant_close]
    assert prompt.before == len(expected) == dialogue_length(TEMPLATE, dialogue, None)
    expected += TEMPLATE.turn(newest.prompt_ids, [visual.tokens for visual in newest.visuals])
    assert prompt.ids == expected
    assert len(prompt.ids) == dialogue_length(TEMPLATE, dialogue, newest)
    places = [slot for slot in prompt.slots if isinstance(slot, tuple)]
    assert places == [
        (visual.digest, number)
        for turn in [*dialogue, newest]
        for visual in turn.visuals
        for number in range(visual.tokens)
    ]
    for slot, token in zip(prompt.slots, prompt.ids, strict=True):
        assert token == (IMAGE if isinstance(slot, tuple) else slot)


@given(dialogue=dialogues, newest=turns, context=st.integers(1, 200), answer=st.integers(1, 500))
def test_what_stays_fits_and_is_all_that_can(
    dialogue: list[Turn], newest: Turn, context: int, answer: int
) -> None:
    if dialogue_length(TEMPLATE, (), newest) + 1 > context:
        with pytest.raises(ContextLengthError):
            fit(TEMPLATE, dialogue, newest, context=context, answer=answer)
        return
    kept, last = fit(TEMPLATE, dialogue, newest, context=context, answer=answer)
    length = dialogue_length(TEMPLATE, kept, last)
    room = context - min(answer, max(context // ANSWER_SHARE, 1))
    assert length + 1 <= context
    assert length <= room or (not kept and last == newest)
    gone = len(dialogue) - len(kept)
    # Whole turns, the oldest first, and no more than it takes.
    assert [turn.prompt_ids for turn in kept] == [turn.prompt_ids for turn in dialogue[gone:]]
    if gone:
        inherited = [visual for turn in dialogue[:gone] for visual in turn.visuals]
        longer = dialogue_length(TEMPLATE, [dialogue[gone - 1], *dialogue[gone:]], newest)
        earlier = inherited[: len(inherited) - len(dialogue[gone - 1].visuals)]
        images = sum(visual.tokens + len(TEMPLATE.after_image) for visual in earlier)
        assert longer + images > room
    # Images stay while a turn is there; the oldest go only where nothing else is left.
    before = [visual for turn in [*dialogue, newest] for visual in turn.visuals]
    after = [visual for turn in [*kept, last] for visual in turn.visuals]
    assert after == before[len(before) - len(after) :]
    assert len(after) == len(before) or not kept


@given(left=st.lists(st.integers(0, 2)), right=st.lists(st.integers(0, 2)))
def test_the_common_length_is_that_of_the_longest_common_beginning(
    left: list[int], right: list[int]
) -> None:
    common = common_length(left, right)
    assert left[:common] == right[:common]
    assert common == min(len(left), len(right)) or left[common] != right[common]


@pytest.mark.parametrize("rewinds", [True, False])
@given(prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=9))
def test_the_cache_holds_what_its_account_says(rewinds: bool, prompts: list[list[int]]) -> None:
    talker = Talker(lambda before: 0)
    state = KVState(talker, rewinds=rewinds)
    for prompt in prompts:
        kept = state.keep_common(prompt)
        assert talker.cached == prompt[:kept]
        assert kept < len(prompt)
        talker.prefill(talker.embed(prompt[kept:]))
        talker.step(50)
        state.record([*prompt, 50, 51])  # the last token of an answer is not stepped
        assert talker.cached == [*prompt, 50]
        assert len(state) == talker.length
    if not rewinds:
        assert {length for name, length in talker.calls if name == "rewind"} <= {0}


def test_tokens_nobody_took_account_of_are_cut_off() -> None:
    talker = Talker(lambda before: 0)
    state = KVState(talker, rewinds=True)
    state.keep_common([1, 2])
    talker.prefill(talker.embed([1, 2, 3, 4]))
    state.record([1, 2, 3])
    assert talker.cached == [1, 2, 3]
