"""`naturelm teach`, `naturelm infer --classifier`, whose rows are those of any answers, the loop of
search, review and teaching, and the labels that it gathers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import call, naturelm, rows
from review_folders import make_clips

from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.results.detections import Detection
from NatureLM.results.rows import read_record
from NatureLM.review.cutting import ChoiceOptions, choose
from NatureLM.review.folder import VerdictStore, read_segments
from NatureLM.search.build import Embedder
from NatureLM.teach.examples import Labelled, merged, read_labelled, write_labels

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


# Search for what sounds alike, review it, teach, listen, and review what is unsure


def detection(file: str, start: float, sure: float, other: float = 0.0) -> Detection:
    others = (("Wren", other),) if other else ()
    return Detection(
        audio_path=file,
        start=start,
        end=start + 10,
        label="Owl",
        confidence=sure,
        alternatives=others,
    )


def test_uncertain_top_and_diverse() -> None:
    found = [
        *(detection("a.wav", 10.0 * n, 0.5 + 0.04 * n, 0.5 - 0.04 * n) for n in range(10)),
        detection("b.wav", 0.0, 0.6, 0.1),
    ]

    def taken(select: str, count: int) -> list[tuple[str, float]]:
        options = ChoiceOptions(choose=select, per_species=count)  # type: ignore[arg-type]
        return [(one.audio_path, one.start) for one in choose(found, options)[0].taken]

    assert taken("uncertain", 2) == [("a.wav", 0.0), ("a.wav", 10.0)]
    assert taken("top", 1) == [("a.wav", 90.0)]
    diverse = taken("diverse", 3)
    assert ("b.wav", 0.0) in diverse
    times = [start for file, start in diverse if file == "a.wav"]
    assert abs(times[0] - times[1]) >= 50
    with pytest.raises(UsageError, match="uncertain, diverse"):
        ChoiceOptions(choose="luck")  # type: ignore[arg-type]


def test_the_loop(support: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ("--model", nano_folder / "checkpoint")
    for number, pitch in enumerate((3000.0, 400.0, 3000.0)):
        tone(Path(f"card/{number}.wav"), pitch, 3.0, seed=number + 5)
    steps = (
        ("embed", "card", "--output-path", "card.npz", *model),
        (
            "search",
            "sounds/High0.wav",
            "--index",
            "card.npz",
            "--top-k",
            3,
            "--label",
            "High",
            "--output-path",
            "hits.jsonl",
        ),
    )
    for step in steps:
        call(*step)
    assert {one["text"] for one in rows("hits.jsonl")} == {"High"}

    shown: list[Path] = []
    monkeypatch.setattr(
        "NatureLM.review.server.serve", lambda settings, say: shown.append(settings.folder)
    )
    call("review", "hits.jsonl", "--select", "top", "--no-token")
    (clips,) = shown
    with VerdictStore(clips) as store:
        for one in read_segments(clips):
            store.add(one.clip, "Ann", "no" if "1.wav" in one.recording else "yes")

    call("teach", support, clips, "-o", "mine", *model)
    said = read_labelled(Path("mine/labels.csv"))[0]
    assert sorted((one.label, one.is_not, one.who) for one in said if one.who) == [
        ("", "High", "Ann"),
        ("High", "", "Ann"),
        ("High", "", "Ann"),
    ]
    call("infer", "card", "--classifier", "mine", "--output-path", "out.jsonl")
    answers = [one["text"] for one in rows("out.jsonl")]
    assert answers[0] == answers[2] == "High"
    call("review", "out.jsonl", "--select", "uncertain")
    assert shown[-1] == Path("out-uncertain")


def test_what_does_not_go_together(support: Path) -> None:
    done = call("search", "sounds/High0.wav", "--index", "x.npz", "--label", "High", ends=2)
    assert "--output-path and --label go together" in done
    Path("clips").mkdir()
    done = call("review", "clips", "--select", "top", ends=2)
    assert "is a folder of clips already" in done


# Labels of tables and of reviewed clips


def test_verdicts_are_labels(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 4)
    with VerdictStore(tmp_path / "clips") as store:
        for reviewer, said in (("Ann", "yes no unsure yes"), ("Bo", "yes no yes no")):
            for clip, verdict in zip(clips, said.split(), strict=True):
                store.add(clip.clip, reviewer, verdict)
    found, notes = read_labelled(tmp_path / "clips")
    assert notes == []
    said = [(one.label, one.is_not, one.who) for one in found]
    assert said == [
        ("Common Cuckoo", "", "Bo"),
        ("", "Eurasian Wren", "Bo"),
        ("Common Cuckoo", "", "Bo"),
    ]
    assert all(one.at for one in found)
    # The recordings are not here: the clips hold the sound, and their times count from its start.
    assert (found[0].start, found[0].end) == pytest.approx((0.1, 1.1))
    assert Path(found[0].recording).is_file()
    assert found[0].group == "/card/0/dawn.wav"


def test_the_table_gives_back_what_was_written(tmp_path: Path) -> None:
    said = [
        Labelled(
            recording=str(tmp_path / "=a.wav"),
            start=1.5,
            end=2.25,
            label="Owl",
            group="r1",
            who="=Ann",
            at="2026-01-02T03:04:05+00:00",
            table="support.csv",
        ),
        Labelled(recording=str(tmp_path / "b.wav"), is_not="Owl"),
    ]
    path = write_labels(tmp_path / "labels.csv", said)
    assert read_labelled(path)[0] == said
    path.write_text(path.read_text("utf-8-sig").replace("1.5", "soon"), encoding="utf-8-sig")
    with pytest.raises(UsageError, match="line 2: start and end"):
        read_labelled(path)


def test_what_was_said_last_holds(tmp_path: Path) -> None:
    def said(label: str, is_not: str = "", at: float = 0.0) -> Labelled:
        recording = str(tmp_path / "a.wav")
        return Labelled(recording=recording, start=at, end=at + 3, label=label, is_not=is_not)

    once = merged([[said("Owl"), said("Wren", at=3)], [said("Crow")]])
    assert [one.label for one in once] == ["Wren", "Crow"]
    kept = merged([[said("Owl")], [said("", is_not="Wren")]])
    assert [(one.label, one.is_not) for one in kept] == [("Owl", "Wren")]
    taken_back = merged([[said("Owl")], [said("", is_not="Owl")]])
    assert [(one.label, one.is_not) for one in taken_back] == [("", "Owl")]


def test_tables_of_other_programs(tmp_path: Path) -> None:
    tone(tmp_path / "dawn.wav", 800.0, 5.0)
    (tmp_path / "dawn.txt").write_text("0.5\t1.5\tOwl\n2\t3\tnone\n", encoding="utf-8")
    found, _ = read_labelled(tmp_path / "dawn.txt")
    assert [(one.label, one.start, one.end) for one in found] == [
        ("Owl", 0.5, 1.5),
        (NOTHING, 2.0, 3.0),
    ]
    assert {one.group for one in found} == {found[0].group}
