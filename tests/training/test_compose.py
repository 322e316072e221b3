"""Few-shot blocks and two-turn conversations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelled_sound import file_clip

from NatureLM.config.training import FewShotConfig
from NatureLM.prompts import AUDIO_TAG, few_shot_prompt
from NatureLM.training.data import Example
from NatureLM.training.samples import (
    ClipPool,
    SupportPool,
    as_second_turn,
    few_shot,
)

TEMPLATE = "<user>{}<|eot_id|><assistant>"


def row(number: int, answer: str, *, task: str = "name", group: str = "") -> Example:
    return Example(
        id=f"t/{number}",
        clips=(file_clip(f"{number}.wav"),),
        prompts=(f"{AUDIO_TAG} Which?",),
        answer=answer,
        task=task,
        group=group,
        labels=(answer,),
    )


ROWS = [row(n, "ABC"[n % 3], group=f"g{n // 2}") for n in range(18)]


def test_clips_stand_in_the_order_of_their_places():
    made = few_shot(ROWS[0], [ROWS[4], ROWS[5]])
    assert [clip.source.name for clip in made.clips] == ["4.wav", "5.wav", "0.wav"]
    assert made.prompts[0] == few_shot_prompt("Which?", ["B", "C"])
    assert made.answer == "A"
    assert made.labels == ()


def test_the_recording_that_is_asked_about_is_no_example():
    with pytest.raises(ValueError, match="is of the recording"):
        few_shot(ROWS[0], [ROWS[0]])
    with pytest.raises(ValueError, match="is of the recording"):
        few_shot(ROWS[0], [ROWS[1]])  # another clip of the same group


@given(st.integers(0, 17), st.integers(0, 500), st.integers(1, 10), st.integers(1, 4))
def test_drawn_examples(place: int, seed: int, most: int, labels: int):
    config = FewShotConfig(prob=1.0, min_examples=1, max_examples=most, max_labels=labels)
    query = ROWS[place]
    support = SupportPool(ROWS).draw(query, config, np.random.default_rng(seed))
    assert 1 <= len(support) <= most
    assert query.answer in {example.answer for example in support}
    assert len({example.answer for example in support}) <= labels
    assert len({example.id for example in support}) == len(support)
    few_shot(query, support)  # refuses leaks


def test_no_examples_without_another_recording_of_the_answer():
    alone = row(99, "D")
    rng = np.random.default_rng(0)
    assert SupportPool([*ROWS, alone]).draw(alone, FewShotConfig(), rng) == []


def test_a_conversation_is_about_one_clip():
    asked = Example(id="a", clips=(file_clip("1.wav"),), prompts=("P",), answer="Wren")
    query = Example(
        id="b",
        clips=(file_clip("1.wav"),),
        prompts=(f"{AUDIO_TAG} Q",),
        answer="yes",
        labels=("yes",),
    )
    other = Example(id="c", clips=(file_clip("2.wav"),), prompts=("R",), answer="no")
    rng = np.random.default_rng(0)
    pool = ClipPool([asked, query, other])
    assert pool.draw_earlier(query, rng) is asked
    assert pool.draw_earlier(other, rng) is None
    made = as_second_turn(TEMPLATE, asked, query, rng)
    assert made.rendered
    assert made.prompts[0] == (
        f"<user>{AUDIO_TAG} P<|eot_id|><assistant>Wren<|eot_id|><user>Q<|eot_id|><assistant>"
    )
    assert made.answer == "yes"
