"""What the tabs do, without a browser: conversations, lists, rankings, visitors, loading."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from web_app import FakePipeline, echo, until

from NatureLM.app.ask_tabs import answered, bars, labels_of, rankings, with_labels
from NatureLM.app.chat import (
    ChatSession,
    LabelRanking,
    answer,
    average_rankings,
    examples_query,
    identify,
    list_of,
)
from NatureLM.app.clips import Clip, ClipList
from NatureLM.app.context import AppContext, Visitors
from NatureLM.app.settings import AppSettings, Limits, folder_of_samples
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.background import PipelineLoader
from NatureLM.inference.pipeline import Pipeline
from NatureLM.models.registry import EMBEDDED
from NatureLM.prompts import AUDIO_TAG, PLACEHOLDER, place_numbered


@pytest.fixture
def clips(sounds: dict[str, Path], tmp_path: Path, limits: Limits) -> list[Clip]:
    """Of 3 s and of 25 s."""
    return [ClipList(tmp_path, limits, most=2).open(sounds[kind]) for kind in ("tone", "long")]


@pytest.fixture
def talk(limits: Limits) -> ChatSession:
    return ChatSession(limits)


@pytest.fixture
def pipeline() -> Any:
    return FakePipeline()


def said(talk: ChatSession, pipeline: Any, clips: list[Clip], text: str, alpha: float = 1) -> str:
    for _ in talk.ask(pipeline, clips, text, alpha):
        pass
    return talk.turns[-1].answer


def test_a_talk_goes_on_until_what_it_is_about_changes(
    clips: list[Clip], talk: ChatSession, pipeline: Any
) -> None:
    tone, long = clips
    assert said(talk, pipeline, [tone], "One") == "You asked: One (1 clips: 3 s)"
    assert said(talk, pipeline, [tone], "Two") == "You asked: Two (0 clips: )"
    assert said(talk, pipeline, [tone, long], "New") == "You asked: New (1 clips: 10 s)"
    assert len(pipeline.conversations) == 1
    assert said(talk, pipeline, [tone, replace(long, chosen=2)], "x").endswith(
        "(2 clips: 3 s, 5 s)"
    )
    assert said(talk, pipeline, [tone], "Other α", 0.5).endswith("(1 clips: 3 s)")
    assert [one.alpha for one in pipeline.conversations] == [1, 1, 0.5]
    assert [one.closed for one in pipeline.conversations] == [True, True, False]
    assert talk.turns[0].about == "tone.wav, 0–3 s"


def test_numbers_place_the_sounds(clips: list[Clip], talk: ChatSession, pipeline: Any) -> None:
    tag = "<Audio><AudioHere></Audio>"
    answer = said(talk, pipeline, clips, "Is [2] in [1]?")
    assert answer == f"You asked: Is {tag} in {tag}? (2 clips: 10 s, 3 s)"


def test_nothing_is_said_where_nothing_can_be_asked(
    clips: list[Clip], pipeline: Any, limits: Limits
) -> None:
    talk = ChatSession(replace(limits, question_characters=20))
    for text, some, reason in (
        ("Hm?", [], "no sound yet"),
        (" ", clips, "is empty"),
        ("x" * 21, clips, "21 characters, and may have 20"),
        ("Is [3] it?", clips, r"\[1\] to \[2\], and the question names \[3\]"),
    ):
        with pytest.raises(NatureLMError, match=reason):
            said(talk, pipeline, some, text)
    assert talk.turns == []


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(
    clips: list[Clip], talk: ChatSession, pipeline: Any
) -> None:
    steps = talk.ask(pipeline, clips, "Well?", 1.0)
    next(steps)
    next(steps)
    steps.close()
    assert [(one.question, one.answer, one.stopped) for one in talk.turns] == [
        ("Well?", "You asked: ", True)
    ]


@pytest.mark.parametrize("steps", [1, 2])
def test_after_a_stop_the_model_hears_a_clip_once(
    clips: list[Clip], talk: ChatSession, steps: int
) -> None:
    """Stopped before the first text, and after it."""
    pipeline = Pipeline(EMBEDDED)
    answer = talk.ask(pipeline, clips[:1], "What makes the sound in the audio?", 1.0)
    for _ in range(steps):
        next(answer)
    answer.close()
    assert [one.stopped for one in talk.turns] == [True]
    said(talk, pipeline, clips[:1], "Is it a bird, a frog or a mammal?")
    assert len(talk.turns) == 2
    assert talk._conversation is not None
    assert talk._conversation.prompt.count(PLACEHOLDER) == 1


def test_after_an_error_the_conversation_begins_anew(clips: list[Clip], talk: ChatSession) -> None:
    def fail(query: str, clips: Sequence[Any]) -> list[str]:
        if "bad" in query:
            raise UsageError("no")
        return echo(query, clips)

    pipeline = FakePipeline(fail)
    said(talk, pipeline, clips[:1], "One")
    with pytest.raises(UsageError):
        said(talk, pipeline, clips[:1], "A bad one")
    assert [one.question for one in talk.turns] == ["One"]
    assert said(talk, pipeline, clips[:1], "Two") == "You asked: Two (1 clips: 3 s)"
    assert [one.closed for one in pipeline.conversations] == [True, False]


def test_a_question_while_the_last_one_still_hangs_begins_anew(
    clips: list[Clip], talk: ChatSession, pipeline: Any
) -> None:
    """A stopped answer may still wait for the model in another thread."""
    pipeline.gate.clear()
    hangs = threading.Thread(target=said, args=(talk, pipeline, clips[:1], "One"))
    hangs.start()
    until(lambda: pipeline.conversations and pipeline.conversations[0].turns)
    talk.stop()
    assert talk.turns[-1].stopped
    pipeline.gate.set()
    assert said(talk, pipeline, clips[:1], "Two") == "You asked: Two (1 clips: 3 s)"
    hangs.join()
    assert len(talk.turns) == 2
    assert said(talk, pipeline, clips[:1], "Three") == "You asked: Three (0 clips: )"


def test_numbers_become_places() -> None:
    text, numbers = place_numbered("[2] or [1]? Not [x].", 2)
    assert text == f"{AUDIO_TAG} or {AUDIO_TAG}? Not [x]."
    assert numbers == (2, 1)
    assert place_numbered("None", 3) == ("None", ())
    for query, reason in (("[0]", r"\[0\]"), ("<AudioHere>", "stands for sound")):
        with pytest.raises(UsageError, match=reason):
            place_numbered(query, 1)


def test_a_pasted_list_is_never_a_path(tmp_path: Path, limits: Limits) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("Barn Owl\n")
    [name] = list_of(str(secret), None, None, tmp_path, limits).names
    assert name == str(secret).replace("_", " ")
    pasted = list_of("Barn Owl, Rook,Barn Owl", None, "naturelm-tiny", tmp_path, limits)
    assert pasted.names == ("Barn Owl", "Rook")
    assert str(tmp_path) not in " ".join(pasted.notes)
    assert (
        list_of("Corvus frugilegus\nTyto alba", None, None, tmp_path, limits).kind == "scientific"
    )
    assert "Rook" in list_of("", None, "naturelm-tiny", tmp_path, limits).names
    assert list_of("x", str(secret), None, tmp_path, limits).names == ("Barn Owl",)
    with pytest.raises(UsageError, match="no list yet"):
        list_of(" ", None, None, tmp_path, limits)
    with pytest.raises(UsageError, match="2 names, and a list may have 1"):
        list_of("a,b", None, None, tmp_path, replace(limits, labels=1))
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]


def test_a_clip_is_ranked_by_window_and_as_a_whole(
    clips: list[Clip], pipeline: Any, tmp_path: Path, limits: Limits
) -> None:
    names = list_of("Rook, Barn Owl, Dog", None, None, tmp_path, limits)
    windows = identify(pipeline, clips[1], names, 0.5, none=True)
    assert [one.labels[0][0] for one in windows] == ["Rook", "Dog"]
    assert pipeline.asked_windows[0]["alpha"] == 0.5
    whole = average_rankings(windows)
    assert (whole.start, whole.end) == (0.0, 20.0)
    assert sum(share for _, share in whole.labels) == pytest.approx(1.0)
    assert dict(whole.labels)["Rook"] == pytest.approx((4 / 7 + 1 / 7) / 2)
    html = rankings(whole, windows)
    assert html.count("<section") == 3
    assert 'data-label="Rook" data-share="0.357143"' in html


def test_none_is_left_out_where_one_must_be_right(
    clips: list[Clip], tmp_path: Path, limits: Limits
) -> None:
    names = list_of("Rook, None", None, None, tmp_path, limits)
    (one, other) = identify(FakePipeline(), clips[0], names, 1, none=False)  # type: ignore[arg-type]
    assert one.labels == other.labels == (("Rook", 1.0),)
    shown = bars(LabelRanking(0, 1, (("None", 0.9), ("<b>", 0.001))), "It")
    assert "None of these" in shown
    assert "&lt;1 %" in shown
    assert "<b>" not in shown


def test_examples_reach_the_model_in_their_places(
    sounds: dict[str, Path], clips: list[Clip], tmp_path: Path, limits: Limits
) -> None:
    shelf = ClipList(tmp_path, limits, most=10)
    for kind, label in (("tone", "Rook"), ("short", "Dog")):
        with pytest.raises(UsageError, match="2 are the fewest"):
            labels_of(shelf.clips)
        shelf.put([(sounds[kind], None)], add=True, label=label)
    labels = labels_of(shelf.clips)
    query = examples_query(with_labels("Which of {labels}?", labels), labels)
    pipeline = FakePipeline()
    heard = [*shelf.clips, clips[1]]
    text, prompt = answer(pipeline, heard, query, 1.0)  # type: ignore[arg-type]
    assert text.endswith("(3 clips: 3 s, 0.1 s, 10 s)")
    assert f"Which of Rook, Dog?\n\nAudio: {AUDIO_TAG}\nLabel: Rook" in prompt
    html = answered(text, prompt, heard)
    places = [html.index(f"♪ {name}") for name in ("tone.wav", "short.wav", "long.wav")]
    assert places == sorted(places)
    with pytest.raises(UsageError, match="stands for sound"):
        examples_query("What?", ["<AudioHere>"])
    shelf.put([(sounds["tone"], None)], add=True, label="")
    with pytest.raises(UsageError, match=r"\[3\] has no name"):
        labels_of(shelf.clips)


def test_visitors_have_folders_that_go_with_them(tmp_path: Path) -> None:
    class Closing:
        closed = False

        def close(self) -> None:
            self.closed = True

    visitors = Visitors(tmp_path, grace_seconds=0.05)
    one, other = visitors.of("one"), visitors.of("other")
    assert visitors.of("one") is one
    assert one.folder != other.folder
    assert len(one.folder.name) > 20
    kept = one.keep("talk", Closing)
    assert one.keep("talk", Closing) is kept
    visitors.closed("one")
    assert visitors.of("one") is one, "whoever comes back in time has lost nothing"
    time.sleep(0.1)
    assert one.folder.is_dir()
    visitors.closed("one")
    until(lambda: not one.folder.exists(), 5)
    assert kept.closed
    assert other.folder.is_dir()
    visitors.close()
    assert not other.folder.exists()
    with pytest.raises(UsageError, match="is being closed"):
        visitors.of("other")


def test_the_model_loads_aside_and_says_why_it_did_not(tmp_path: Path) -> None:
    context = AppContext(AppSettings(model=str(tmp_path / "none"), runs_dir=tmp_path))
    try:
        assert context.loader.state == "waiting"
        with pytest.raises(NatureLMError, match="could not be loaded"):
            context.pipeline(timeout=60)
        assert context.loader.state == "failed"
    finally:
        context.close()
    assert not context.folder.exists()

    hold = threading.Event()
    waiting = AppContext(AppSettings(runs_dir=tmp_path), PipelineLoader(hold.wait))  # type: ignore[arg-type]
    try:
        with pytest.raises(NatureLMError, match="still loading"):
            waiting.pipeline(timeout=0.01)
        assert waiting.loader.state == "loading"
    finally:
        hold.set()
        waiting.close()


def test_a_folder_of_samples_must_be_there(tmp_path: Path) -> None:
    assert folder_of_samples(tmp_path) == tmp_path
    with pytest.raises(UsageError, match="no such folder"):
        folder_of_samples(tmp_path / "none")


def test_a_clip_without_sound_is_not_identified(
    sounds: dict[str, Path], nano: Any, tmp_path: Path, limits: Limits
) -> None:
    shelf = ClipList(tmp_path, limits, most=10)
    mixed = tmp_path / "mixed.wav"
    tone, rate = soundfile.read(sounds["tone"])
    soundfile.write(mixed, np.concatenate([np.zeros(10 * rate), tone]), rate)
    shelf.put([(sounds["silent"], None), (mixed, None)], add=False)
    names, pipeline = list_of("Rook, Dog", None, None, tmp_path, limits), Pipeline(nano)
    with pytest.raises(UsageError, match=r"silent\.wav: there is no sound to identify"):
        identify(pipeline, shelf.clips[0], names, 1.0, none=True)
    with pytest.raises(UsageError, match=r"silent\.wav: nothing is asked here\. It is silent"):
        shelf.clips[0].samples()
    windows = identify(pipeline, shelf.clips[1], names, 1.0, none=True)
    assert [bool(one.labels) for one in windows] == [False, True]
    whole = average_rankings(windows)
    assert whole.labels == windows[1].labels
    assert "silent, not asked" in rankings(whole, windows)
