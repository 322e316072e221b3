"""From a template for one question to the text of many."""

from __future__ import annotations

import numpy as np
import pytest
from labelled_sound import file_clip
from torch import Tensor

from NatureLM.config.schema import LLAMA_3_TEMPLATE
from NatureLM.data.sample import Example
from NatureLM.generation.engine import GenerationOptions
from NatureLM.inference.conversation import Conversation
from NatureLM.models import NatureLM
from NatureLM.prompts import (
    AUDIO_TAG,
    PLACEHOLDER,
    ChatTemplate,
    few_shot_prompt,
    render,
    with_clips,
)
from NatureLM.training.data import as_second_turn

USER, ASSISTANT, END = (
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
)
SYSTEM = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.{END}"


TWO_TURNS = [
    (LLAMA_3_TEMPLATE, f"{USER}q1{END}{ASSISTANT}a1{END}{USER}q2{END}{ASSISTANT}"),
    (
        SYSTEM + LLAMA_3_TEMPLATE,
        f"{SYSTEM}{USER}q1{END}{ASSISTANT}a1{END}{USER}q2{END}{ASSISTANT}",
    ),
    (
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "<|user|>\n{}<|end|>\n<|assistant|>\n",
        "<|user|>\nq1<|end|>\n<|assistant|>\na1<|end|>\n<|user|>\nq2<|end|>\n<|assistant|>\n",
    ),
    ("USER: {}\nASSISTANT: ", "USER: q1\nASSISTANT: a1\nUSER: q2\nASSISTANT: "),
    ("{}\n\nAnswer:", "q1\n\nAnswer:a1\n\nq2\n\nAnswer:"),
    ("{}", "q1a1\nq2"),
]


@pytest.mark.parametrize(("template", "two_turns"), TWO_TURNS)
def test_turns_are_wrapped_as_the_template_wraps_one(template: str, two_turns: str) -> None:
    chat = ChatTemplate.of(template)
    assert chat.text([("q1", "a1"), ("q2", "")]) == two_turns
    assert chat.text([("q1", "")]) == template.replace("{}", "q1")


@pytest.mark.parametrize(("template", "two_turns"), TWO_TURNS)
def test_training_and_conversations_give_two_turns_the_same_text(
    template: str,
    two_turns: str,
    nano: NatureLM,
    nano_waveforms: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nano.processor, "prompt_template", template)
    options = GenerationOptions(num_beams=1, max_new_tokens=3)
    with Conversation(nano, lambda wav: wav, [nano_waveforms["howl"]], options=options) as talk:
        for question in ("q1", "q2"):
            list(talk.ask(question))
        asked = talk.prompt.removesuffix(talk.turns[-1].answer)
        answer = talk.turns[0].answer

    clips = (file_clip("howl.wav"),)
    earlier = Example(id="a", clips=clips, prompts=("q1",), answer=answer)
    query = Example(id="b", clips=clips, prompts=(f"{AUDIO_TAG} q2",), answer="a2")
    learnt = as_second_turn(template, earlier, query, np.random.default_rng(0)).prompts[0]
    assert learnt == asked
    assert learnt == two_turns.replace("q1", f"{AUDIO_TAG} q1").replace("a1", answer)


def test_an_answer_cannot_ask_for_clips() -> None:
    chat = ChatTemplate.of(LLAMA_3_TEMPLATE)
    nested = f"<Audio{PLACEHOLDER}Here>"
    text = chat.text([("q1", f"see {PLACEHOLDER} {nested}!"), (AUDIO_TAG, "")])
    assert text.count(PLACEHOLDER) == 1
    assert "see  !" in text


def test_clips_stand_in_front_unless_the_question_places_them() -> None:
    assert with_clips(" What? ", 0) == "What?"
    assert with_clips("What?", 2) == f"{AUDIO_TAG} {AUDIO_TAG} What?"
    assert with_clips(f"Is {PLACEHOLDER} a bird?", 1) == f"Is {PLACEHOLDER} a bird?"
    assert render("[{}]", "What?") == f"[{with_clips('What?', 1)}]"


def test_a_few_shot_prompt_ends_with_the_clip_that_is_asked_about() -> None:
    assert few_shot_prompt("Which?", ["Wren"]) == (
        f"Which?\n\nAudio: {AUDIO_TAG}\nLabel: Wren\n\nAudio: {AUDIO_TAG}\nLabel:"
    )
    assert few_shot_prompt("", []) == f"Audio: {AUDIO_TAG}\nLabel:"
