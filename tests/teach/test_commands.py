"""`naturelm teach`, and `naturelm infer --classifier`, whose rows are those of any answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import call, naturelm, rows

from NatureLM.results.rows import read_record
from NatureLM.search.build import Embedder
from NatureLM.teach.examples import read_labelled

from .conftest import make_support, tone


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory, nano_folder: Path) -> Path:
    """A classifier of two made species."""
    folder = tmp_path_factory.mktemp("taught")
    support = make_support(folder)
    model = ("--model", nano_folder / "checkpoint")
    made = call("teach", support, "-o", folder / "mine", *model)
    assert "High" in made
    assert "Of 6 held-out clips of 6 recordings" in made
    return folder / "mine"


@pytest.fixture
def taught(support: Path, made_once: Path) -> Path:
    """That classifier, in `mine`, and recordings in `card`."""
    shutil.copytree(made_once, "mine")
    tone(Path("card/dawn.wav"), 3000.0, 12.0, seed=3)
    tone(Path("card/dusk.wav"), 400.0, 4.0, seed=4)
    return Path("mine")


def test_it_answers_as_models_do(taught: Path) -> None:
    call("infer", "card", "--classifier", taught, "--output-path", "out.jsonl")
    answers = rows("out.jsonl")
    assert [(Path(one["audio_path"]).name, one["start"]) for one in answers] == [
        *(("dawn.wav", 0.0), ("dawn.wav", 10.0)),
        ("dusk.wav", 0.0),
    ]
    assert all({"High", "Low", "None"} >= {one["text"]} for one in answers)
    for one in answers:
        shares = [one["confidence"], *(share for _, share in one["alternatives"])]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert shares == sorted(shares, reverse=True)
    record = read_record(Path("out.jsonl"))
    assert record is not None
    assert (
        record.values["classifier"]
        == json.loads((taught / "classifier.json").read_text(encoding="utf-8"))["fingerprint"]
    )
    call("infer", "card", "--classifier", taught, "--output-path", "out.jsonl")
    assert rows("out.jsonl") == answers
    call("events", "out.jsonl", "--output-path", "events.jsonl")


def test_a_survey_of_a_classifier_has_its_tables(taught: Path) -> None:
    call("survey", "card", "--classifier", taught, "--output-path", "season")
    assert len(rows("season/survey.jsonl")) == 3
    assert "dawn.wav" in Path("season/survey.csv").read_text(encoding="utf-8-sig")


def test_what_is_for_the_language_model_is_refused(taught: Path) -> None:
    for options in (("--query", "What?"), ("--species-list", "a,b"), ("--merging-alpha", "0.5")):
        done = call("infer", "card", "--classifier", taught, *options, ends=2)
        assert f"{options[0]} is for the language model" in done
    done = naturelm("infer", "card", "--classifier", "card")
    assert "is no classifier" in done.output


def test_another_encoder_is_refused(taught: Path) -> None:
    done = call("infer", "card", "--classifier", taught, "--model", "naturelm-tiny", ends=2)
    assert "was taught on what" in done


def test_a_second_call_adds(taught: Path) -> None:
    tone(Path("sounds/Mid.wav"), 1200.0, seed=5)
    Path("more.csv").write_text("path,label\nsounds/Mid.wav,Middle\n", encoding="utf-8")
    done = call("teach", "more.csv", "-o", taught)
    assert "its 6 labels count, too" in done
    labels = read_labelled(taught / "labels.csv")[0]
    assert sorted({one.label for one in labels}) == ["High", "Low", "Middle"]
    assert len(labels) == 7


def test_an_index_is_not_heard_anew(taught: Path, nano_folder: Path) -> None:
    model = ("--model", nano_folder / "checkpoint")
    call("embed", "sounds", "--output-path", "sounds.npz", *model)
    done = call("teach", "support.csv", "-o", "other", "--index", "sounds.npz")
    assert "holds 6 of 6 examples" in done
    one, other = (
        json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        for folder in (taught, Path("other"))
    )
    assert one["card"] == other["card"]


def test_recordings_of_an_index_are_not_heard_anew(
    taught: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tone(Path("card/quiet.wav"), 0.0, 3.0)
    soundfile.write("card/nothing.wav", np.zeros(32000), 16000)
    infer = ("infer", "card", "--classifier", taught, "--output-path")

    def assert_alike(one: str, other: str) -> None:
        both = [
            sorted(rows(path), key=lambda row: (row["audio_path"], row["start"]))
            for path in (one, other)
        ]
        names = ("audio_path", "start", "end", "text")
        first, second = ([[row[name] for name in names] for row in found] for found in both)
        assert first == second
        # Shares depend on the batch in the sixth digit.
        sure, again = ([row.get("confidence", 0.0) for row in found] for found in both)
        assert sure == pytest.approx(again, abs=1e-4)

    call(*infer, "heard.jsonl")
    model = ("--model", nano_folder / "checkpoint")
    call("embed", "card", "--output-path", "card.npz", "--layer", "peaks", *model)
    before = Embedder.vectors
    monkeypatch.delattr(Embedder, "vectors")
    call(*infer, "held.jsonl", "--index", "card.npz")
    assert_alike("held.jsonl", "heard.jsonl")
    (silent,) = (one for one in rows("held.jsonl") if "nothing.wav" in one["audio_path"])
    assert not silent["text"]
    monkeypatch.setattr(Embedder, "vectors", before, raising=False)

    tone(Path("card/late.wav"), 400.0, 4.0, seed=9)
    tone(Path("card/dusk.wav"), 3000.0, 4.0, seed=5)  # another sound of the same name
    call(*infer, "heard.jsonl", "--overwrite")
    done = naturelm(*infer, "held.jsonl", "--overwrite", "--index", "card.npz")
    assert "card.npz: it lacks 2 of 5 recordings" in done.output
    assert_alike("held.jsonl", "heard.jsonl")
    call("embed", "sounds", "--output-path", "mean.npz", "--layer", "encoder", *model)
    monkeypatch.setattr("NatureLM.inference.loading.load_model", None)  # refused before that
    for options, message in (
        (("--index", "mean.npz"), "was made with --layer encoder, and the classifier was taught"),
        (("--hop-length-seconds", 5), "was made with --hop-length-seconds 10.0, and 5.0 is asked"),
        (("--index", "sounds.npz"), "there is no such index"),
    ):
        done = call(*infer, "other.jsonl", "--index", "card.npz", *options, ends=2)
        assert message in done
    done = naturelm("infer", "card", "--query", "What?", "--index", "card.npz")
    assert "--index goes with --classifier" in done.output


def test_broken_examples_are_said_and_left_out(support: Path, nano_folder: Path) -> None:
    Path("sounds/High0.wav").write_bytes(b"no sound")
    done = call("teach", support, "-o", "mine", "--model", nano_folder / "checkpoint", ends=3)
    assert "High0.wav" in done
    assert Path("mine/classifier.json").is_file()
