"""Where memory runs out the work goes on with less, and gives the same answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from decoding import requests_about_clips
from torch import Tensor

from NatureLM.generation import engine as module
from NatureLM.generation.decoding import DecodingSession
from NatureLM.generation.engine import Engine, GenerationOptions
from NatureLM.generation.labels import LabelChoice
from NatureLM.models import NatureLM
from NatureLM.util import is_out_of_memory, oom_backoff

OPTIONS = GenerationOptions(max_new_tokens=4, num_beams=1)


def run(model: NatureLM, waves: dict[str, Tensor], engine: Engine) -> dict[Any, str | None]:
    return {one.key: one.text for one in engine.run(requests_about_clips(model), waves.__getitem__)}


class Limited:
    """Stands in for a device that has room for `rows` rows."""

    def __init__(self, rows: int, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        self.rows, self.error = rows, error

    def check(self, rows: int) -> None:
        if rows > self.rows:
            raise self.error("CUDA out of memory. Tried to allocate much.")


@pytest.mark.parametrize(
    ("rows", "error"),
    [(1, torch.OutOfMemoryError), (7, torch.OutOfMemoryError), (7, RuntimeError)],
)
def test_batches_are_halved_until_they_fit(
    rows: int,
    error: type[RuntimeError],
    double: NatureLM,
    clips: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = run(double, clips, Engine(double, OPTIONS))
    limited = Limited(rows, error)
    init = DecodingSession.__init__

    def begin(session: DecodingSession, model: Any, prompts: Any, *args: Any, **how: Any) -> None:
        limited.check(len(prompts))
        init(session, model, prompts, *args, **how)

    monkeypatch.setattr(DecodingSession, "__init__", begin)
    assert run(double, clips, Engine(double, OPTIONS)) == wanted
    assert (
        caplog.messages[0] == "memory ran out when 18 answers were decoded at once; going on with 9"
    )


def test_answers_that_were_begun_begin_again(
    double: NatureLM,
    clips: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Memory runs out in the middle of a step, when some layers have taken it and others not."""
    options = GenerationOptions(
        max_new_tokens=5, num_beams=1, do_sample=True, temperature=1.5, seed=3
    )
    wanted = run(double, clips, Engine(double, options))
    limited = Limited(5)
    step = DecodingSession.step
    last = double.language_model.model.layers[-1].self_attn.forward

    def attend(*args: Any, **how: Any) -> Any:
        if how["hidden_states"].shape[1] == 1:
            limited.check(how["hidden_states"].shape[0])
        return last(*args, **how)

    monkeypatch.setattr(double.language_model.model.layers[-1].self_attn, "forward", attend)
    assert run(double, clips, Engine(double, options)) == wanted
    assert [note.rsplit(" ", 1)[1] for note in caplog.messages] == ["9", "4"]
    assert DecodingSession.step is step


def test_fewer_clips_are_encoded_at_once(
    double: NatureLM,
    nano_waveforms: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = run(double, nano_waveforms, Engine(double, OPTIONS))
    limited = Limited(1)
    encode = double.encode_audio

    def encoding(wav_BS: Tensor) -> Tensor:
        limited.check(len(wav_BS))
        return encode(wav_BS)

    monkeypatch.setattr(double, "encode_audio", encoding)
    engine = Engine(double, OPTIONS)
    assert run(double, nano_waveforms, engine) == wanted
    assert caplog.messages == ["memory ran out when 3 clips were encoded at once; going on with 1"]
    assert engine.encoded == 3


def test_one_row_that_does_not_fit_is_an_error(
    double: NatureLM, clips: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DecodingSession, "__init__", never)
    with pytest.raises(torch.OutOfMemoryError):
        run(double, clips, Engine(double, OPTIONS))


def test_other_errors_are_raised() -> None:
    with pytest.raises(RuntimeError, match="shape"), oom_backoff(8, "rows were run"):
        raise RuntimeError("shape mismatch")
    assert not is_out_of_memory(ValueError("out of memory"))


def test_memory_bounds_batches_and_embeddings(
    double: NatureLM, clips: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    init = DecodingSession.__init__

    def begin(session: DecodingSession, model: Any, prompts: Any, *args: Any, **how: Any) -> None:
        rows.append(len(prompts))
        init(session, model, prompts, *args, **how)

    monkeypatch.setattr(DecodingSession, "__init__", begin)
    run(double, clips, Engine(double, OPTIONS))
    assert rows == [18]
    rows.clear()
    config = double.language_model.config
    width = config.hidden_size // config.num_attention_heads
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * width * 8
    run(double, clips, Engine(double, OPTIONS, max_memory=4 * 400 * position))
    assert max(rows) * (60 + 4) <= 400 + 64
    assert len(rows) > 3


def test_rows_that_others_could_not_join_go_on(
    double: NatureLM, clips: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out after keys and values were put together, before the logits were."""
    options = GenerationOptions(max_new_tokens=9, num_beams=1)
    wanted = run(double, clips, Engine(double, options))
    cat = torch.cat
    vocabulary = double.language_model.config.vocab_size
    failures: list[int] = []

    def joining(tensors: Any, *args: Any, **how: Any) -> Tensor:
        rows = [one.shape for one in tensors]
        if not failures and all(len(one) == 2 and one[1] == vocabulary for one in rows):
            failures.append(len(rows))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cat(tensors, *args, **how)

    monkeypatch.setattr(torch, "cat", joining)
    engine = Engine(double, options, eos_ids=[604, 402, 69, 11], batch_rows=6)
    alone = Engine(double, options, eos_ids=[604, 402, 69, 11], batch_rows=6)
    found = run(double, clips, engine)
    assert failures
    assert found == run(double, clips, alone)
    assert found.keys() == wanted.keys()


def test_lists_left_are_scored_in_smaller_batches_too(
    double: NatureLM,
    clips: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    choice = LabelChoice(("Owl", "Wolf"))
    requests = [replace(one, choice=choice) for one in requests_about_clips(double)]
    limited = Limited(3)
    score = module.score_trie

    def scoring(model: Any, prompts: Any, *args: Any, **how: Any) -> Any:
        limited.check(len(prompts))
        return score(model, prompts, *args, **how)

    monkeypatch.setattr(module, "score_trie", scoring)
    engine = Engine(double, OPTIONS, batch_rows=6)
    answers = list(engine.run(requests, clips.__getitem__))
    assert len(answers) == len(requests)
    assert caplog.messages == [
        "memory ran out when 6 lists of labels were scored at once; going on with 3"
    ]
