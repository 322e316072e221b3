"""Recordings and questions in, answers per window out; loading a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.app.context import AppContext
from NatureLM.app.settings import AppSettings
from NatureLM.audio import AudioError
from NatureLM.audio.windows import iter_windows
from NatureLM.config import Config, load_config
from NatureLM.errors import UsageError
from NatureLM.generation.audio_cache import Load
from NatureLM.generation.engine import Answer, Engine, Request
from NatureLM.inference import windows as sound_stream
from NatureLM.inference.loading import load_model, pick_device
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import RecordingError, WindowKey, WindowResult
from NatureLM.models import NatureLM
from NatureLM.models.registry import EMBEDDED

RATE = 16000
FAST = {"max_new_tokens": 6, "num_beams": 1}
OF_A_SECOND = {"window_length_seconds": 1.0, "hop_length_seconds": 1.0, **FAST}
OF_A_TOKEN = {**OF_A_SECOND, "max_new_tokens": 1}


@pytest.fixture(scope="module")
def pipeline(nano: NatureLM) -> Pipeline:
    return Pipeline(nano)


@pytest.fixture(scope="module")
def nano64(nano_folder: Path) -> NatureLM:
    """In float64, where no rounding decides between tokens."""
    return NatureLM.from_pretrained(nano_folder / "checkpoint", dtype=torch.float64)


def sound(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    noise = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (500 + 40 * seed + 200 * t) * t)
    return (0.2 * tone + 0.02 * noise.normal(size=len(t))).astype(np.float32)


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    paths = []
    for number, seconds in enumerate((23.0, 3.0, 0.2)):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], sound(seconds, number), RATE)
    return paths


def test_lines_have_the_published_form(pipeline: Pipeline, recordings: list[Path]) -> None:
    answers = pipeline(recordings, "What is it?", **FAST)
    assert [answer.count("\n") for answer in answers] == [
        # an answer of this random model may hold line feeds of its own
        sum(r.text.count("\n") + 1 for r in pipeline.windows([path], "What is it?", **FAST))
        for path in recordings
    ]
    assert answers[0].startswith("#0.00s - 10.00s#: ")
    assert "#20.00s - 23.00s#: " in answers[0]
    assert answers[1].startswith("#0.00s - 3.00s#: ")
    assert answers[2].startswith("#0.00s - 0.20s#: ")


def test_one_path_one_array_and_one_query_per_audio(
    pipeline: Pipeline, recordings: list[Path]
) -> None:
    by_path = pipeline(str(recordings[1]), "What is it?", **FAST)
    wav, rate = soundfile.read(recordings[1], dtype="float32")
    by_array = pipeline(wav, "What is it?", input_sample_rate=rate, **FAST)
    assert by_path == by_array
    both = pipeline([recordings[1], wav], ["What is it?", "Caption the audio."], **FAST)
    assert both[0] == by_path[0]
    assert both[1] == pipeline([wav], "Caption the audio.", **FAST)[0]
    with pytest.raises(UsageError, match="3 queries were given for 1 audios"):
        pipeline([wav], ["a", "b", "c"])


def test_windows_equal_the_plain_way(
    pipeline: Pipeline, nano: NatureLM, recordings: list[Path]
) -> None:
    queries = ["What is it?", "Caption the audio."]
    got = list(
        pipeline.windows(recordings[:2], [queries] * 2, hop_length_seconds=5.0, alpha=0.5, **FAST)
    )
    wanted = [
        (
            str(path),
            w.start,
            w.end,
            query,
            nano.generate([nano.processor.render(query)], [[w.samples]], alpha=0.5, **FAST)[0],
        )
        for path in recordings[:2]
        for w in iter_windows(path, hop_seconds=5.0)
        for query in queries
    ]
    assert [(r.audio_path, r.start, r.end, r.query, r.text) for r in got] == wanted
    assert {r.merging_alpha for r in got} == {0.5}
    assert got[0].prompt == nano.processor.render("What is it?")


@pytest.fixture(scope="module")
def arrays() -> list[np.ndarray]:
    return [sound(seconds, seed) for seed, seconds in enumerate((12.0, 4.0, 21.0))]


@pytest.fixture(scope="module")
def alone(pipeline: Pipeline, arrays: list[np.ndarray]) -> list[str]:
    """The lines of each."""
    return [pipeline([array], "What is it?", batch_size=1, **FAST)[0] for array in arrays]


@settings(max_examples=5)
@given(batch_size=st.integers(1, 9), order=st.permutations(range(3)))
def test_batch_size_and_order_change_nothing(
    batch_size: int,
    order: list[int],
    pipeline: Pipeline,
    arrays: list[np.ndarray],
    alone: list[str],
) -> None:
    results = pipeline.windows(
        [arrays[i] for i in order], "What is it?", batch_size=batch_size, **FAST
    )
    lines: dict[str, str] = {}
    for r in results:
        assert isinstance(r, WindowResult)
        line = f"#{r.start:.2f}s - {r.end:.2f}s#: {r.text}\n"
        lines[r.audio_path] = lines.get(r.audio_path, "") + line
    assert [lines[f"audio {place}"] for place in range(3)] == [alone[i] for i in order]


def test_a_bad_file_does_not_stop_its_neighbours(
    pipeline: Pipeline, recordings: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.mp3"
    bad.write_text("not sound at all")
    files = [recordings[1], bad, recordings[2]]
    got = list(pipeline.windows(files, "What is it?", errors="yield", batch_size=8, **FAST))
    assert [type(r) for r in got] == [WindowResult, RecordingError, WindowResult]
    assert got[1].audio_path == str(bad)
    assert "bad.mp3" in str(got[1].error)
    with pytest.raises(AudioError, match=r"bad\.mp3"):
        pipeline(files, "What is it?", **FAST)


def test_what_is_skipped_is_not_asked(
    nano: NatureLM, recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(nano)
    asked: list[str] = []
    run = Engine.run

    def spy(engine: Engine, requests: Iterable[Request], load: Load) -> Iterator[Answer]:
        for answer in run(engine, requests, load):
            asked.append(answer.request.prompt)
            yield answer

    monkeypatch.setattr(Engine, "run", spy)
    done = {WindowKey(str(recordings[0]), 0.0, "A?"), WindowKey(str(recordings[0]), 10.0, "B?")}
    done |= {WindowKey(str(recordings[1]), 0.0, q) for q in ("A?", "B?")}
    got = list(pipeline.windows(recordings[:2], [["A?", "B?"]] * 2, skip=done.__contains__, **FAST))
    keys = {WindowKey(r.audio_path, r.start, r.query) for r in got}
    everything = {
        WindowKey(str(recordings[0]), start, q) for start in (0.0, 10.0, 20.0) for q in ("A?", "B?")
    }
    assert keys == everything - done
    assert len(asked) == len(keys)


def test_each_window_is_encoded_once_for_all_questions(
    nano: NatureLM, recordings: list[Path], encoded: list[int]
) -> None:
    list(Pipeline(nano).windows([recordings[0]], [["A?", "B?", "C?"]], **FAST))
    assert sum(encoded) == 3


def test_settings_come_from_the_configuration(nano: NatureLM, tmp_path: Path) -> None:
    config = tmp_path / "c.yml"
    config.write_text("generate:\n  max_new_tokens: 2\n  num_beams: 1\n  merging_alpha: 0.25\n")
    (result,) = Pipeline(nano, config).windows([sound(2.0)], "What is it?")
    assert result.merging_alpha == 0.25
    (longer,) = Pipeline(nano, config).windows([sound(2.0)], "What is it?", max_new_tokens=8)
    assert len(longer.text) > len(result.text)


def test_a_window_longer_than_the_models_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match="20 s is longer than the 10 s"):
        pipeline([sound(2.0)], "What is it?", window_length_seconds=20.0)


def test_an_unknown_generation_option_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(TypeError, match="num_beam"):
        pipeline([sound(2.0)], "What is it?", num_beam=1)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == "cpu"
    with pytest.raises(UsageError, match="'cuda:1' is not available"):
        pick_device("cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == "cuda"
    assert pick_device("cpu") == "cpu"


def test_windows_are_decoded_as_they_are_needed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    windows = sound_stream.iter_windows

    def counting(*args: Any, **options: Any) -> Iterator[Any]:
        for window in windows(*args, **options):
            made.append(window.index)
            yield window

    monkeypatch.setattr(sound_stream, "iter_windows", counting)
    results = pipeline.windows([sound(50.0)], "What is it?", batch_size=2, **OF_A_TOKEN)
    next(results)
    assert len(made) <= 30, "the whole recording was decoded before the first answer"
    assert [r.window_index for r in results] == list(range(1, 50))


def test_sound_is_let_go_of_once_it_is_answered(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[sound_stream.WindowStream] = []
    hold = sound_stream.WindowStream.hold

    def spy(stream: sound_stream.WindowStream, heard: Any, **how: Any) -> None:
        streams.append(stream)
        hold(stream, heard, **how)

    monkeypatch.setattr(sound_stream.WindowStream, "hold", spy)
    for _ in pipeline.windows([sound(24.0)], [["A?", "B?"]], batch_size=4, **OF_A_TOKEN):
        assert len(streams[0]._held) <= 6
    list(pipeline.windows([sound(9.0, seed=3)], "A?", batch_size=4, **OF_A_TOKEN))
    assert not streams[-1]._held, "what one question is asked of is let go of when it is loaded"


def test_a_folded_run_answers_alike_and_leaves_the_model_as_it_was(
    nano64: NatureLM, recordings: list[Path]
) -> None:
    pipeline = Pipeline(nano64)
    before = {name: one.clone() for name, one in nano64.named_parameters()}
    wanted = list(pipeline.windows(recordings, "What is it?", alpha=0.4, **FAST))
    folded = pipeline.windows(recordings, "What is it?", alpha=0.4, fold=True, **FAST)
    first = next(folded)
    assert nano64.folded is not None
    assert [first, *folded] == wanted
    stopped = pipeline.windows(recordings, "What is it?", alpha=0.3, fold=True, **FAST)
    next(stopped)
    stopped.close()
    assert nano64.folded is None
    assert all(torch.equal(one, before[name]) for name, one in nano64.named_parameters())


def test_a_folded_model_is_asked_at_its_alpha(nano64: NatureLM) -> None:
    with nano64.fold(0.25):
        (result,) = Pipeline(nano64).windows([sound(2.0)], "What is it?", **FAST)
        assert result.merging_alpha == 0.25


def test_samples_do_not_depend_on_batch_or_resume(nano64: NatureLM) -> None:
    pipeline = Pipeline(nano64)
    options = {**FAST, "do_sample": True, "temperature": 1.5, "alpha": 0.5}
    clip = sound(30.0)
    whole = list(pipeline.windows([clip], [["A?", "B?"]], **options))
    assert len({r.text for r in whole}) > 1
    done = {("audio 0", 0.0, "A?"), ("audio 0", 10.0, "B?")}
    rest = pipeline.windows(
        [clip],
        [["A?", "B?"]],
        batch_size=1,
        skip=lambda key: (key.audio_path, key.start, key.query) in done,
        **options,
    )
    wanted = [r.text for r in whole if (r.audio_path, r.start, r.query) not in done]
    assert [r.text for r in rest] == wanted


def test_notes_about_a_recording_come_from_the_callers_thread(pipeline: Pipeline) -> None:
    said: list[tuple[str, str]] = []
    high = np.sin(2 * np.pi * 30_000 * np.arange(96_000 * 2) / 96_000).astype(np.float32)
    results = pipeline.windows(
        [high],
        "What is it?",
        input_sample_rate=96_000,
        warn=lambda text: said.append((text, threading.current_thread().name)),
        **FAST,
    )
    assert len(list(results)) == 1
    assert [thread for _, thread in said] == [threading.current_thread().name]


def test_numbers_in_a_list_are_one_recording(pipeline: Pipeline) -> None:
    samples = sound(2.0)
    assert pipeline(samples.tolist(), "What is it?", **FAST) == pipeline(
        [samples], "What is it?", **FAST
    )


def test_kept_embeddings_are_a_part_of_the_memory(nano: NatureLM) -> None:
    pipeline = Pipeline(nano, max_memory=8000)
    list(pipeline.windows([sound(2.0)], "What is it?", **FAST))
    assert pipeline._embeddings is not None
    assert pipeline._embeddings.memory.max_bytes == 1000


TEMPLATE = "Question: {} Answer:"


def test_the_prompt_template_of_the_configuration_is_used_and_else_the_models_own() -> None:
    own = load_model(EMBEDDED, load_config()).processor
    changed = load_config(None, [f"model.prompt_template={TEMPLATE}"])
    processor = load_model(EMBEDDED, changed).processor
    assert own is not None
    assert processor is not None
    assert processor.prompt_template == TEMPLATE != own.prompt_template


@pytest.mark.parametrize(
    "door",
    [lambda config: AppContext(AppSettings(config=config)), lambda config: served(config)],
    ids=["app", "service"],
)
def test_page_and_service_load_what_the_command_line_loads(
    own_folder: Path, door: Callable[[Config], Any]
) -> None:
    config = load_config(None, [f"model.prompt_template={TEMPLATE}"])
    opened = door(config)
    pipeline = opened.loader.wait(timeout=120)
    opened.close()
    assert pipeline.model.processor.prompt_template == TEMPLATE
    assert pipeline.cfg is config


def served(config: Config) -> Any:
    pytest.importorskip("fastapi")
    from NatureLM.serve.model import ServedModel
    from NatureLM.serve.settings import ServeSettings

    return ServedModel(ServeSettings(config=config))


@pytest.fixture
def partly_silent() -> np.ndarray:
    """Sound, silence, a constant, opposite channels, sound: a second each."""
    one, zeros = sound(1.0), np.zeros(RATE, np.float32)
    left = np.concatenate([one, zeros, zeros + 0.5, one, one])
    return np.stack([left, np.concatenate([one, zeros, zeros + 0.5, -one, one])])


def test_windows_without_sound_are_marked_and_not_asked(
    pipeline: Pipeline, partly_silent: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    queries = [["What is it?", "Caption the audio."]]
    got = list(pipeline.windows([partly_silent], queries, **OF_A_SECOND))
    every = list(pipeline.windows([partly_silent], queries, ask_silence=True, **OF_A_SECOND))
    notes = ["", "silent", "constant", "cancelled", ""]
    places = [(n, query) for n in range(5) for query in queries[0]]
    assert [(r.window_index, r.query) for r in got] == places
    for found in (got, every):
        assert [r.note for r in found] == [notes[n] for n, _ in places]
    assert [r.asked for r in got] == [notes[n] == "" for n, _ in places]
    for one, other in zip(got, every, strict=True):
        assert other.asked
        assert other.confidence is not None
        if one.asked:  # sums may round otherwise in a batch of another size
            assert one.confidence == pytest.approx(other.confidence, rel=1e-5)
            assert replace(one, confidence=0.0) == replace(other, confidence=0.0)
        else:
            assert (one.text, one.confidence, one.alternatives) == ("", None, ())
    caplog.clear()
    (lines,) = pipeline([partly_silent], "What is it?", **OF_A_SECOND)
    assert "#1.00s - 2.00s#: \n#2.00s - 3.00s#: \n#3.00s - 4.00s#: \n#4.00s" in lines
    assert "audio 0: 3 of 5 windows hold no sound (cancelled, constant, silent)" in caplog.text
    # Nothing at all is asked, and nothing is the matter.
    zeros = np.zeros(3 * RATE)
    labels = {"mode": "score", "labels": ["Dog"]}
    silent = list(pipeline.windows([zeros, zeros], "q", **labels, **OF_A_SECOND))
    assert [(r.audio_index, r.note, r.text) for r in silent] == [
        (place, "silent", "") for place in (0, 0, 0, 1, 1, 1)
    ]


@pytest.mark.parametrize("kind", ["silent", "cancelled"])
def test_clips_without_sound_are_refused(pipeline: Pipeline, kind: str, tmp_path: Path) -> None:
    wave = sound(1.0) * (kind == "cancelled")
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([wave, -wave], axis=1), RATE)
    for ask in (
        lambda **options: pipeline.conversation([path], **options, **FAST),
        lambda **options: "".join(pipeline.stream(path, "What is it?", **options, **FAST)),
        lambda **options: pipeline.compare_alphas([path], "What?", [0.0], **options, **FAST),
    ):
        with pytest.raises(AudioError, match=rf"a\.wav: there is no sound to ask about \({kind}\)"):
            ask()
        ask(ask_silence=True)


def test_floats_of_any_scale_get_the_same_answer(pipeline: Pipeline) -> None:
    wave = np.round(sound(2.0) * 32768) / 32768
    answers = [pipeline([scale * wave], "What?", **FAST) for scale in (1, 32768)]
    assert answers[0] == answers[1]
