"""Every kind of answer that BEANS-Next asks for, as a column of a questionnaire.

The first answer of each kind has the form of the benchmark's own references; the others are what
language models make of it, and what can not be decided.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import yaml

from NatureLM.survey.questionnaire import Column, read_questionnaire

UNPARSED = object()


class Kind(NamedTuple):
    """A kind of answers: its column, and what answers mean."""

    column: dict[str, Any]
    answers: dict[str, Any]


SPECIES = ["Motacilla alba", "Erithacus rubecula", "Numenius arquata", "Charadrius hiaticula"]
FOUR = ["a slow trill", "a low drone", "a sharp whistle", "staccato notes"]
KINDS = {
    "presence": Kind(
        {"type": "yes_no", "question": "Is there a bird in this recording? Answer Yes or No."},
        {
            "Yes": True,
            "No": False,
            "no.": False,
            "Yes, both species call at the same time at the end.": True,
            "No, there are no moments where both call.": False,
            "The two overlap twice. Answer: Yes": True,
            "**No**": False,
            "Yes and no: they overlap once.": UNPARSED,
            "Both species are calling.": UNPARSED,
            "None": UNPARSED,
        },
    ),
    "one of four letters": Kind(
        {
            "type": "choice",
            "labels": FOUR,
            "mode": "generate",
            "question": "Which fits?\n{options}",
        },
        {
            "B": FOUR[1],
            "b": FOUR[1],
            "C: a sharp whistle": FOUR[2],
            "(d)": FOUR[3],
            "**A**": FOUR[0],
            "The correct answer is C.": FOUR[2],
            "Option D": FOUR[3],
            "A sharp whistle": FOUR[2],
            "It is a low drone, so the answer is B": FOUR[1],
            "B or C": UNPARSED,
            "B: a sharp whistle": UNPARSED,
            "E": UNPARSED,
            "A bird sings": UNPARSED,
        },
    ),
    "letters of examples that are present, if any": Kind(
        {
            "type": "choice",
            "labels": ["Multiple pulse gibbon call", "Single pulse gibbon call", "Duet"],
            "several": True,
            "mode": "generate",
            "question": "Which are present, if any?\n{options}",
        },
        {
            "A": ["Multiple pulse gibbon call"],
            "None": [],
            "A, C": ["Multiple pulse gibbon call", "Duet"],
            "Multiple pulse gibbon call": ["Multiple pulse gibbon call"],
            "B and C.": ["Single pulse gibbon call", "Duet"],
            "None of the above": [],
            "A, D": UNPARSED,
            "D": UNPARSED,
            "A, not C": UNPARSED,
        },
    ),
    "frequency": Kind(
        {"type": "number", "unit": "Hz", "question": "What is the mean fundamental frequency?"},
        {
            "3100 Hz": 3100.0,
            "1,654.75": 1654.75,
            "3.1 kHz": 3100.0,
            "The mean fundamental frequency is approximately 3,100 Hz.": 3100.0,
            "2131-4440 Hz": UNPARSED,
            "around 2 to 3 kHz": UNPARSED,
            "high-pitched": UNPARSED,
            "10 s": UNPARSED,
        },
    ),
    "signal-to-noise ratio": Kind(
        {"type": "number", "unit": "dB", "question": "What is the signal-to-noise ratio?"},
        {
            "39 dB": 39.0,
            "39dB": 39.0,
            "-3.5 dB": -3.5,
            "The SNR is about 12 decibels.": 12.0,
            "12": 12.0,
            "good": UNPARSED,
            "3 kHz": UNPARSED,
        },
    ),
    "fixed vocabulary": Kind(
        {
            "type": "choice",
            "labels": ["alarm call", "flight call", "begging call", "song", "call"],
            "several": True,
            "mode": "generate",
            "question": "Choose all that apply: {labels}.",
        },
        {
            "song": ["song"],
            "flight call, call": ["flight call", "call"],
            "Alarm calls and songs": ["alarm call", "song"],
            "None": [],
            "trill": UNPARSED,
            "song, trill": UNPARSED,
        },
    ),
    "behaviour": Kind(
        {
            "type": "choice",
            "labels": ["Wing snap", "No vocalization/silent", "Song"],
            "mode": "generate",
            "question": "Which behavior is it? Options: {labels}",
        },
        {
            "Wing snap": "Wing snap",
            "a wing-snap": "Wing snap",
            "No vocalization/silent": "No vocalization/silent",
            "wing snap or song": UNPARSED,
        },
    ),
    "one species": Kind(
        {"type": "choice", "labels": SPECIES, "mode": "generate", "question": "Which? {labels}"},
        {
            "Motacilla alba": "Motacilla alba",
            "motacilla alba.": "Motacilla alba",
            "The highest-pitched vocalization is that of Motacilla alba.": "Motacilla alba",
            "White Wagtail (Motacilla alba)": "Motacilla alba",
            "#0.00s - 5.00s#: Motacilla alba\n": "Motacilla alba",
            "Motacilla": UNPARSED,
            "Motacilla alba, Erithacus rubecula": UNPARSED,
            "Turdus merula": UNPARSED,
        },
    ),
    "count": Kind(
        {"type": "count", "question": "How many vocalizations are there?"},
        {
            "5": 5,
            "There are five vocalizations.": 5,
            "Approximately 12 calls": 12,
            "5 to 7": UNPARSED,
            "Several": UNPARSED,
        },
    ),
    "species listed behind their number": Kind(
        {"type": "count", "question": "How many species are there, and what are they?"},
        {
            "4: Corvus brachyrhynchos, Seiurus aurocapilla, Setophaga virens, Vireo solitarius": 4,
            "1: Corvus brachyrhynchos": 1,
            "3: Corvus brachyrhynchos, Seiurus aurocapilla": UNPARSED,
            "None": 0,
        },
    ),
    "the species of such a list": Kind(
        {"type": "names", "question": "How many species are there, and what are they?"},
        {
            "2: Corvus brachyrhynchos, Seiurus aurocapilla": [
                *("Corvus brachyrhynchos", "Seiurus aurocapilla")
            ],
            "Corvus brachyrhynchos and Seiurus aurocapilla": [
                *("Corvus brachyrhynchos", "Seiurus aurocapilla")
            ],
            "None": [],
            "I can hear two species.": UNPARSED,
        },
    ),
    "counts of each species": Kind(
        {"type": "counts", "question": "How many calls of each species are there?"},
        {
            "Pipilo erythrophthalmus: 6; Geothlypis trichas: 4": {
                "Pipilo erythrophthalmus": 6,
                "Geothlypis trichas": 4,
            },
            "Corvus corax: 3 calls, 920–2130 Hz; Regulus calendula: 2 calls, 1430–8030 Hz.": {
                "Corvus corax": 3,
                "Regulus calendula": 2,
            },
            "- Corvus corax: 3\n- Regulus calendula: 2": {
                "Corvus corax": 3,
                "Regulus calendula": 2,
            },
            '{"Corvus corax": 3}': {"Corvus corax": 3},
            "Corvus corax calls often": UNPARSED,
        },
    ),
    "detection": Kind(
        {
            "type": "choice",
            "labels": ["Aedes aegypti", "Culex pipiens", "Anopheles gambiae"],
            "several": True,
            "mode": "generate",
            "question": "Which of these, if any, are present? {labels}.",
        },
        {
            "None": [],
            "Culex pipiens, Aedes aegypti": ["Culex pipiens", "Aedes aegypti"],
            "culex pipiens<|end_of_text|>": ["Culex pipiens"],
            "Culex": UNPARSED,
        },
    ),
    "one label": Kind(
        {
            "type": "choice",
            "labels": ["dog", "rain", "sea_waves", "juvenile", "adult", "an gambiae ss"],
            "mode": "generate",
            "question": "Which sound is it?",
        },
        {
            "dog": "dog",
            "Sea waves": "sea_waves",
            "The sound of a dog.": "dog",
            "Juvenile": "juvenile",
            "An. gambiae ss": "an gambiae ss",
            "puppy": UNPARSED,
            "a dog in the rain": UNPARSED,
        },
    ),
    "individuals": Kind(
        {
            "type": "choice",
            "labels": ["One", "More"],
            "mode": "generate",
            "question": "One individual or more?",
        },
        {"One": "One", "more": "More", "There is more than one": UNPARSED},
    ),
    "caption": Kind(
        {"type": "text", "question": "What can you hear in this recording?"},
        {
            "One duck, 2,500 to 7,000 Hz.": "One duck, 2,500 to 7,000 Hz.",
            "Two owls hoot.<|end_of_text|>": "Two owls hoot.",
            "": UNPARSED,
        },
    ),
}


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Column]:
    path = tmp_path_factory.mktemp("kinds") / "kinds.yml"
    numbered = {f"kind{number}": kind.column for number, kind in enumerate(KINDS.values())}
    path.write_text(yaml.safe_dump({"columns": numbered}, sort_keys=False), encoding="utf-8")
    return dict(zip(KINDS, read_questionnaire(path).columns, strict=True))


@pytest.mark.parametrize(
    ("kind", "said", "value"),
    [(name, said, value) for name, kind in KINDS.items() for said, value in kind.answers.items()],
)
def test_answers_of_each_kind(columns: dict[str, Column], kind: str, said: str, value: Any) -> None:
    expected = (None, False) if value is UNPARSED else (value, True)
    assert columns[kind].value(said) == expected
