"""From a template for one question to the text of many."""

from __future__ import annotations

import pytest

from NatureLM.config.schema import LLAMA_3_TEMPLATE
from NatureLM.prompts import AUDIO_TAG, PLACEHOLDER, ChatTemplate, render, with_clips

USER, ASSISTANT, END = (
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
)
SYSTEM = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.{END}"


@pytest.mark.parametrize(
    ("template", "two_turns"),
    [
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
    ],
)
def test_turns_are_wrapped_as_the_template_wraps_one(template: str, two_turns: str) -> None:
    chat = ChatTemplate.of(template)
    assert chat.text([("q1", "a1"), ("q2", "")]) == two_turns
    assert chat.text([("q1", "")]) == template.replace("{}", "q1")


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
