"""`naturelm survey`: one row a window, tables at the end, resumed after any stop."""

from __future__ import annotations

import csv
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
from commands import naturelm, rows
from conftest import ROOT

survey = functools.partial(naturelm, "survey")
ASSETS = ROOT / "assets"
QUESTIONS = """
columns:
  species:
    question: "What is the common name for the focal species in the audio?"
    species_list: species.txt
    type: choice
  is_dog: {question: "Is there a dog?", type: yes_no, ask_if: species == "Dog"}
"""
PLACES = """site,latitude,longitude,zone,folder
Pond,25.39,-80.68,UTC-5,pond
"""
"""Everglades: 2024-05-10 05:30 at UTC-5 is 10:30 UTC; the sun rises at about 10:39 UTC there."""


@pytest.fixture
def card(folder: Path) -> Path:
    """A card with two recordings, a silent one, a broken one, and a questionnaire."""
    for name, source in (("20240510_053000.WAV", "dog.WAV"), ("20240510_054000.WAV", "cat.flac")):
        sound, rate = soundfile.read(ASSETS / f"synthetic_{source}")
        target = folder / "card" / "pond" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, sound, rate, format="WAV", subtype="PCM_16")
    (folder / "card" / "pond" / "20240510_055000.WAV").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    (folder / "species.txt").write_text("Canis familiaris_Dog\nFelis catus_Cat\n")
    (folder / "questions.yml").write_text(QUESTIONS)
    (folder / "places.csv").write_text(PLACES)
    return folder


def test_a_card_becomes_a_table(card: Path) -> None:
    result = survey("questions.yml", "card", "--deployments", "places.csv")
    assert result.exit_code == 3, result.output  # one recording is broken
    assert "species: Dog" in result.stdout
    assert "1 error" in result.stderr
    dog, cat, error = rows("survey/survey.jsonl")
    assert dog["answers"]["species"] == "Dog"
    assert isinstance(dog["answers"]["is_dog"], bool)
    assert cat["answers"] == {"species": "Cat"}
    assert error["audio_path"].endswith("055000.WAV")
    context = dog["context"]
    assert context["local_time"] == "2024-05-10T05:30:00-05:00"
    assert context["utc_time"] == "2024-05-10T10:30:00Z"
    assert (context["site"], context["clock_source"]) == ("Pond", "name")
    assert context["hours_after_sunrise"] == pytest.approx(-0.15, abs=0.04)
    with open("survey/survey.csv", encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["species"] for row in table] == ["Dog", "Cat", ""]
    assert table[0]["site"] == "Pond"
    assert 0 < float(table[0]["species_confidence"]) <= 1
    raven = naturelm("export", "survey/survey.jsonl", "--format", "raven", "--column", "species")
    assert raven.exit_code == 0, raven.output
    selections = Path("survey/survey.selections.txt").read_text().splitlines()
    assert "Canis familiaris" in selections[1]
    # A table that was wrong is corrected: the same command puts the rows right, and asks nothing.
    Path("places.csv").write_text(PLACES.replace("Pond,25", "Mill pond,25"), encoding="utf-8")
    again = survey("questions.yml", "card", "--deployments", "places.csv")
    assert "rows of 2 recordings have the times and places" in " ".join(again.stderr.split())
    moved = rows("survey/survey.jsonl")[:2]
    assert [row["context"]["site"] for row in moved] == ["Mill pond"] * 2
    assert [row["answers"] for row in moved] == [dog["answers"], cat["answers"]]
    without = survey("questions.yml", "card")
    assert "have the times and places" not in without.stderr
    assert rows("survey/survey.jsonl")[0]["context"]["site"] == "Mill pond"


def test_a_second_run_adds_nothing(card: Path) -> None:
    ask = ("questions.yml", "card/pond/20240510_053000.WAV", "--quiet")
    assert survey(*ask).exit_code == 0
    before = Path("survey/survey.jsonl").read_bytes()
    again = survey(*ask)
    assert again.exit_code == 0
    assert "has 1 answers of this run" in again.stderr
    assert Path("survey/survey.jsonl").read_bytes() == before
    other = (card / "questions.yml").read_text().replace("a dog", "a wolf")
    (card / "questions.yml").write_text(other)
    refused = survey(*ask)
    assert refused.exit_code == 2
    assert "columns.is_dog.question" in refused.stderr
    assert survey(*ask, "--overwrite").exit_code == 0


def test_the_context_goes_into_questions(card: Path) -> None:
    text = 'columns:\n  w: {question: "Given the context {place}: is it wet?", type: yes_no}\n'
    (card / "questions.yml").write_text(text)
    ask = ("questions.yml", "card/pond/20240510_053000.WAV")
    without = survey(*ask)
    assert without.exit_code == 3
    assert "{place}" in without.stderr
    refused = survey(*ask, "--deployments", "places.csv")
    assert (refused.exit_code, "context.deployments: null there" in refused.stderr) == (2, True)
    done = survey(*ask, "--deployments", "places.csv", "--overwrite")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing.yml", "card"), "nothing.yml"),
        (("who-cals", "card"), "who-calls"),
        (("questions.yml",), "--audio-path"),
        (("questions.yml", "none"), "no such file or folder"),
        (("questions.yml", "card", "--format", "xls"), "--format"),
        (("questions.yml", "card", "--window-length-seconds", "60"), "hears at most"),
        (("questions.yml", "card", "--from", "none.csv"), "none.csv"),
    ],
)
def test_what_cannot_work_is_refused(card: Path, words: tuple[str, ...], said: str) -> None:
    result = survey(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not Path("survey/survey.csv").exists()


def test_detections_of_birdnet_are_asked_about(card: Path) -> None:
    table = (
        "Start (s),End (s),Scientific name,Common name,Confidence,File\n"
        "0.0,3.0,Canis familiaris,Dog,0.9,C:\\card\\pond\\20240510_053000.WAV\n"
        "1.0,4.0,Strix aluco,Tawny Owl,0.4,C:\\card\\pond\\20240510_054000.WAV\n"
    )
    (card / "birdnet.csv").write_text(table)
    text = "  right: {question: 'BirdNET says {label}. Is that right?', type: yes_no}\n"
    (card / "questions.yml").write_text(QUESTIONS.rstrip() + "\n" + text)
    result = survey("questions.yml", "card", "--from", "birdnet.csv")
    assert result.exit_code == 0, result.output
    first, second = rows("survey/survey.jsonl")
    assert (first["start"], first["end"]) == (0.0, 3.0)
    assert first["claim"] == {
        **{"label": "Dog", "confidence": 0.9, "scientific_name": "Canis familiaris"},
        "agrees": True,
    }
    assert (second["claim"]["label"], second["claim"]["agrees"]) == ("Tawny Owl", False)
    with open("survey/survey.csv", encoding="utf-8-sig", newline="") as file:
        assert [row["claim_agrees"] for row in csv.DictReader(file)] == ["yes", "no"]
    again = naturelm(
        *("infer", "--from", "birdnet.csv", "--audio-path", "card"),
        *("--query", "BirdNET says {label}: what do you say?", "--format", "csv"),
    )
    assert again.exit_code == 0, again.output
    told = rows("inference_output.jsonl")
    assert [row["claim"]["label"] for row in told] == ["Dog", "Tawny Owl"]
    assert Path("inference_output.csv").is_file()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_killed_it_has_every_row_once(card: Path) -> None:
    for number in range(30):
        sound, rate = soundfile.read(ASSETS / "synthetic_dog.WAV", start=number * 10)
        soundfile.write(card / "card" / f"clip{number:02}.wav", sound, rate)
    (card / "card" / "pond" / "20240510_055000.WAV").unlink()
    words = [sys.executable, "-c", "from NatureLM.cli.main import naturelm; naturelm()"]
    words += ["survey", "questions.yml", "card", "--quiet", "--batch-size", "2"]
    output = card / "survey" / "survey.jsonl"
    running = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 60
    while time.monotonic() < end and (not output.exists() or output.read_bytes().count(b"\n") < 6):
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert 6 <= output.read_bytes().count(b"\n") < 32
    assert survey(*words[4:]).exit_code == 0
    found = rows(output)
    assert len(found) == len({(row["audio_path"], row["start"]) for row in found}) == 32
