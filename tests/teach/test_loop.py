"""Search for what sounds alike, review it, teach, listen, and review what is unsure."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call, rows

from NatureLM.errors import UsageError
from NatureLM.results.detections import Detection
from NatureLM.review.cutting import ChoiceOptions, choose
from NatureLM.review.folder import VerdictStore, read_segments
from NatureLM.teach.examples import read_labelled

from .conftest import tone


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
