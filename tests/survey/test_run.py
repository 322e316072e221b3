"""A questionnaire is asked of every window: each answer is the one that it would get alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from NatureLM.audio import AudioError
from NatureLM.errors import UsageError
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import AskOptions, Recording, RecordingError, WindowResult
from NatureLM.results.detections import Detection
from NatureLM.results.rows import ErrorRow, RunSettings, SurveyRow, read_rows
from NatureLM.results.store import WindowStore
from NatureLM.survey.questionnaire import read_questionnaire
from NatureLM.survey.run import Survey

ASSETS = Path(__file__).resolve().parents[2] / "assets"
DOG, TOAD = ASSETS / "synthetic_dog.WAV", ASSETS / "synthetic_american_toad.flac"
HEATH = ASSETS / "synthetic_heath_at_dusk.ogg"
QUESTIONS = """
columns:
  species:
    question: "What is the common name for the focal species in the audio?"
    type: choice
    labels: [Dog, American Toad, Barn Owl, European Nightjar]
  is_dog:
    question: "Is there a dog in this recording?"
    type: yes_no
    ask_if: species == "Dog" or species.confidence < 0.2
    merging_alpha: 0.5
  what:
    question: "Caption the audio."
    type: text
    max_new_tokens: 12
    ask_if: is_dog == "yes"
  number:
    question: "How many animals are there?"
    type: count
"""
SurveyOf = Callable[..., Survey]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline()


@pytest.fixture
def survey_of(pipeline: Pipeline, tmp_path: Path) -> SurveyOf:
    def make(text: str, **options: Any) -> Survey:
        path = tmp_path / "questions.yml"
        path.write_text(text, encoding="utf-8")
        return Survey(pipeline, read_questionnaire(path), AskOptions(()), **options)

    return make


def asked(
    survey: Survey, recordings: Sequence[Path], output: Path, **more: Any
) -> Iterator[SurveyRow | RecordingError]:
    """Ask and store, row by row."""
    with WindowStore(output) as store:
        settings = {"model": "m", "queries": [], **survey.settings()}
        store.begin(RunSettings(settings), recordings)
        todo = [Recording(n, str(one), one, (), **more) for n, one in enumerate(recordings)]
        for one in survey.rows(todo, store):
            if isinstance(one, RecordingError):
                store.add_error(one.audio_path, one.error, 1.0)
            else:
                store.add(one)
            yield one


def rows_of(output: Path) -> list[SurveyRow]:
    return [row for row in read_rows(output) if isinstance(row, SurveyRow)]


def answers(survey: Survey, recordings: Sequence[Path], folder: Path) -> list[SurveyRow]:
    """All rows that are stored."""
    list(asked(survey, recordings, folder / "x.jsonl"))
    return rows_of(folder / "x.jsonl")


def test_answers_are_those_that_a_question_gets_alone(
    pipeline: Pipeline, survey_of: SurveyOf, tmp_path: Path
) -> None:
    survey = survey_of(QUESTIONS)
    stored = answers(survey, [DOG, HEATH, TOAD], tmp_path)
    assert [(row.audio_path, row.start) for row in stored] == [
        (str(DOG), 0.0), (str(HEATH), 0.0), (str(HEATH), 10.0), (str(HEATH), 20.0), (str(TOAD), 0.0)
    ]  # fmt: skip
    assert survey._engine.encoded == 5  # each window once
    alone = pipeline.windows(
        [DOG, HEATH, TOAD],
        "What is the common name for the focal species in the audio?",
        mode="score",
        labels=["Dog", "American Toad", "Barn Owl", "European Nightjar"],
        alpha=1.0,
    )
    for row, one in zip(stored, alone, strict=True):
        assert isinstance(one, WindowResult)
        assert (row.answers["species"] or "None") == one.text
        assert row.confidences is not None
        assert row.confidences["species"] == pytest.approx(one.confidence, rel=1e-4)
        told = row.answers["species"] == "Dog" or row.confidences["species"] < 0.2
        assert ("is_dog" in row.answers) == told
        assert ("what" in row.answers) == (row.answers.get("is_dog") is True)
    assert stored[0].answers["species"] == "Dog"
    assert stored[4].answers["species"] == "American Toad"


def test_each_column_has_its_alpha(pipeline: Pipeline, survey_of: SurveyOf, tmp_path: Path) -> None:
    question = "Is there a dog in this recording?"
    columns = "\n".join(
        f'  a{n}: {{question: "{question}", type: yes_no, merging_alpha: {alpha}}}'
        for n, alpha in enumerate((0.0, 0.5, 1.0))
    )
    (row,) = answers(survey_of(f"columns:\n{columns}"), [DOG], tmp_path)
    assert row.confidences is not None
    for name, alpha in (("a0", 0.0), ("a1", 0.5), ("a2", 1.0)):
        (one,) = pipeline.windows(
            [DOG], question, mode="score", labels=["Yes", "No"], alpha=alpha, top_k=3
        )
        assert isinstance(one, WindowResult)
        shares = dict([(one.text, one.confidence), *one.alternatives])
        share = shares["Yes" if row.answers[name] else "No"]
        assert share is not None
        both = (shares["Yes"] or 0.0) + (shares["No"] or 0.0)
        assert row.confidences[name] == pytest.approx(share / both, rel=1e-3)
    assert len(set(row.confidences.values())) == 3


def test_a_stopped_survey_is_resumed_to_the_same_rows(survey_of: SurveyOf, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF0000WAVE")
    recordings = [bad, DOG, HEATH, TOAD]
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    list(asked(survey_of(QUESTIONS, batch_size=2), recordings, whole))
    for stops in (1, 2, 99):
        survey = survey_of(QUESTIONS, batch_size=2)
        for number, _ in enumerate(asked(survey, recordings, parts)):
            if number == stops:
                break
    assert [row.answers for row in rows_of(parts)] == [row.answers for row in rows_of(whole)]
    (error,) = [row for row in read_rows(parts) if isinstance(row, ErrorRow)]
    assert error.audio_path == str(bad)


def test_silence_is_not_asked_about(survey_of: SurveyOf, tmp_path: Path) -> None:
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(32_000), 16_000)
    (row,) = answers(survey_of(QUESTIONS), [silent], tmp_path)
    assert (row.note, row.answers, row.shown) == ("silent", {}, "silent, not asked")


def test_what_is_not_understood_is_kept_as_it_was_said(survey_of: SurveyOf, tmp_path: Path) -> None:
    text = 'columns:\n  n: {question: "Caption the audio.", type: count}\n'
    survey = survey_of(text)
    (row,) = answers(survey, [DOG], tmp_path)
    assert row.answers == {"n": None}
    assert row.said is not None
    assert row.said["n"]
    assert survey.unparsed == {"n": 1}


def test_json_follows_its_schema(survey_of: SurveyOf, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["dog", "toad"]}, "loud": {"type": "boolean"}},
        "required": ["animal", "loud"],
        "additionalProperties": False,
    }
    question = '"Describe the animal."'
    text = f"columns:\n  facts: {{question: {question}, type: json, schema: {json.dumps(schema)}}}"
    for row in answers(survey_of(text), [DOG, TOAD], tmp_path):
        assert row.answers["facts"]["animal"] in ("dog", "toad")
        assert isinstance(row.answers["facts"]["loud"], bool)


def test_a_question_with_a_hole_is_an_error_of_its_recording(
    survey_of: SurveyOf, tmp_path: Path
) -> None:
    def fill(question: str, heard: Any) -> str:
        if heard.recording.name == str(HEATH):
            raise AudioError(HEATH, "its place is not known", "say it", "UnknownContext")
        return question.replace("{place}", "Bog")

    text = 'columns:\n  where: {question: "Is {place} wet?", type: yes_no}\n'
    answers(survey_of(text, fill=fill, batch_size=1), [DOG, HEATH, TOAD], tmp_path)
    rows = list(read_rows(tmp_path / "x.jsonl"))
    assert [(type(row), row.audio_path) for row in rows] == [
        (SurveyRow, str(DOG)), (ErrorRow, str(HEATH)), (SurveyRow, str(TOAD))
    ]  # fmt: skip


def test_claims_are_asked_about(survey_of: SurveyOf, tmp_path: Path) -> None:
    claims = tuple(
        Detection(audio_path=str(DOG), start=0.5, end=3.0, label=label) for label in ("Dog", "Owl")
    )
    survey = survey_of(QUESTIONS)
    for _ in range(2):
        list(asked(survey, [DOG], tmp_path / "x.jsonl", claims=claims))
    rows = rows_of(tmp_path / "x.jsonl")
    assert [(row.start, row.end, row.claimed) for row in rows] == [
        (0.5, 3.0, "Dog"), (0.5, 3.0, "Owl")
    ]  # fmt: skip
    for row in rows:
        assert row.claim is not None
        assert row.claim["agrees"] == (row.answers["species"] == row.claimed)


def test_what_cannot_fit_is_refused_before_the_first_window(survey_of: SurveyOf) -> None:
    text = f'columns:\n  long: {{question: "{"long " * 4000}", type: text}}\n'
    with pytest.raises(UsageError, match="column 'long'"):
        survey_of(text)


def test_thresholds_of_a_column_are_those_of_the_model(survey_of: SurveyOf, tmp_path: Path) -> None:
    text = QUESTIONS.replace("Nightjar]\n", "Nightjar]\n    min_confidence: least.csv\n")
    table = tmp_path / "least.csv"
    table.write_text("species,threshold,question,merging_alpha\nDog,0.5,species,1\n")
    survey_of(text).settings()
    table.write_text("species,threshold,question,merging_alpha\nDog,0.5,species,0.7\n")
    with pytest.raises(UsageError, match=r"made at α = 0\.7"):
        survey_of(text).settings()
