"""The page: safe with hostile answers, offline, the same every time, bounded in size."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from NatureLM.cli import main
from NatureLM.errors import UsageError
from NatureLM.evaluation.bootstrap import BootstrapOptions, Estimate
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import score
from NatureLM.reports.page import write_report
from NatureLM.reports.report import make_report
from NatureLM.reports.tables import Table, latex, markdown

Rows = list[dict[str, Any]]
Ran = tuple[int, str, str]
FEW = BootstrapOptions(resamples=20)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> &amp; <!-- <b>"


@pytest.fixture
def naturelm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Runs `naturelm` with words; exit code, output and errors."""

    def run(*words: object, program: str = "naturelm") -> Ran:
        monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        code: Any = 0
        try:
            getattr(main, program)()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


def test_answers_are_text_whatever_they_hold(
    make_rows: Callable[..., Rows],
    write_rows: Callable[..., Path],
    read_page: Callable[[Path], Any],
    naturelm: Callable[..., Ran],
    tmp_path: Path,
) -> None:
    rows = make_rows(samples=12)
    for row in rows[:5]:
        row |= {"prediction": HOSTILE, "label": f"Owl {HOSTILE}", "prompt": HOSTILE}
    for row in rows:
        row["dataset_name"] = f"mine {HOSTILE}"
    rows[7]["prediction"] = "half a character \ud800 and \u2028 a line"
    out = tmp_path / "report"
    code, _, errors = naturelm(
        "report", write_rows(rows), "--task", "classification", "--title", HOSTILE,
        "--output-path", out, "--resamples", 20,
    )  # fmt: skip
    assert code == 0, errors
    page = read_page(out)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    answers = json.loads(page.scripts["answer-data"])
    assert HOSTILE in answers["texts"]
    assert "half a character \ud800 and \u2028 a line" in answers["texts"]
    assert any(HOSTILE in word for word in page.words)
    checksum = hashlib.sha256(page.scripts["code"].encode()).digest()
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert f"'sha256-{base64.b64encode(checksum).decode()}'" in (policy or "")
    assert "innerHTML" not in page.scripts["code"]
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in out.rglob("*.*"))


def test_the_page_needs_no_network_and_names_no_folder(
    make_rows: Callable[..., Rows],
    write_rows: Callable[..., Path],
    naturelm: Callable[..., Ran],
    tmp_path: Path,
) -> None:
    path = write_rows(make_rows())
    out = tmp_path / "report"
    code, printed, _ = naturelm(
        "report", path, "--output-path", out, "--resamples", 20, program="beans"
    )
    assert code == 0
    assert "360 answers" in printed
    text = (out / "index.html").read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert not re.search(r'(?:src|href)="(?!#)', text)
    assert str(tmp_path) not in text
    assert "answers.jsonl" in text
    identities = re.findall(r'\bid="([^"]+)"', text)
    assert len(identities) == len(set(identities))
    for target in re.findall(r'href="#([^"]+)"', text) + re.findall(r"url\(#([^)]+)\)", text):
        assert target in identities
    for suffix in (".svg", ".png"):
        assert len(list((out / "figures").glob(f"*{suffix}"))) == 9
    for suffix in (".csv", ".md", ".tex"):
        assert len(list((out / "tables").glob(f"*{suffix}"))) == 6


def test_the_same_bytes_every_time(
    make_rows: Callable[..., Rows], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_rows(make_rows(samples=18, alphas=[0.0, 1.0]))
    program = "from NatureLM.cli.main import naturelm; naturelm()"
    made = []
    for seed in ("1", "77"):
        out = tmp_path / seed
        words = ["report", path, "--output-path", out, "--resamples", "20"]
        subprocess.run(
            [sys.executable, "-c", program, *map(str, words)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
        files = sorted(file for file in out.rglob("*") if file.is_file())
        made.append({file.relative_to(out): file.read_bytes() for file in files})
    assert made[0] == made[1]


def test_as_many_answers_as_asked_for_and_the_same_samples_everywhere(
    make_rows: Callable[..., Rows],
    write_rows: Callable[..., Path],
    read_page: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    scores = score([write_rows(make_rows())], [protocol("strict")], bootstrap=FEW)
    for limit, samples in ((100, 10), (3000, 36), (0, 0)):
        report = make_report(scores, most_answers=limit, bootstrap=FEW)
        shown = report.answers
        assert shown.samples == samples
        assert len(shown.data["rows"]) == shown.shown == samples * 10
        by_group: dict[int, list[str]] = {}
        for group, identity, *_ in shown.data["rows"]:
            by_group.setdefault(group, []).append(shown.data["texts"][identity])
        assert len({tuple(ids) for ids in by_group.values()}) <= 1
        if limit == 100:
            write_report(report, tmp_path)
            assert "100 of 360 answers are in this page" in "".join(read_page(tmp_path).words)
    groups = [group for one in report.series for group in one.series.groups]
    for number, identity, label, answer, taken, right in shown_rows(scores):
        line_group = groups[number]
        place = line_group.ids.index(identity)
        assert (line_group.labels[place], line_group.answers[place]) == (label, answer)
        assert line_group.samples.predicted[place] == taken
        assert line_group.samples.correct[place] == right


def shown_rows(scores: Any) -> list[tuple[Any, ...]]:
    data = make_report(scores, most_answers=20, bootstrap=FEW).answers.data
    texts = data["texts"]
    return [(row[0], *(texts[place] for place in row[1:5]), row[5]) for row in data["rows"]]


def test_captions_are_neither_right_nor_wrong(
    make_rows: Callable[..., Rows], write_rows: Callable[..., Path]
) -> None:
    """A caption without a word of the reference has CIDEr 0, which is a score and no verdict."""
    rows = make_rows(samples=6, queries=[0], alphas=[1.0])
    captions = [
        row | {"dataset_name": "captioning", "label": f"A {row['label']} sings.", "prediction": "?"}
        for row in rows
    ]
    scores = score([write_rows(rows + captions)], [protocol("strict")], bootstrap=FEW)
    groups = make_report(scores, bootstrap=FEW).answers.data["groups"]
    assert [(dataset, is_caption) for dataset, _, _, is_caption in groups] == [
        ("captioning", True),
        ("watkins", False),
    ]


def test_without_matplotlib(
    make_rows: Callable[..., Rows],
    write_rows: Callable[..., Path],
    naturelm: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = write_rows(make_rows(samples=6))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, errors = naturelm("report", path, "--output-path", tmp_path / "report")
    assert code == 2
    assert "pip install 'naturelm-audio[plots]'" in errors
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--between", "1.0"], "--between 1.0: write two values"),
        (["--between", "1,1"], "are the same"),
        (["--between", "1.0,0.3"], "has no answers at α = 0.3; there are 0.0, 0.25"),
        (["--protocol", "papre"], "there is no protocol 'papre'"),
        (["--by", "id"], "cannot make groups"),
    ],
)
def test_wrong_requests(
    make_rows: Callable[..., Rows],
    write_rows: Callable[..., Path],
    naturelm: Callable[..., Ran],
    tmp_path: Path,
    words: list[str],
    message: str,
) -> None:
    path = write_rows(make_rows(samples=6))
    code, _, errors = naturelm("report", path, "--output-path", tmp_path / "report", *words)
    assert code == 2
    assert message in errors


def test_scores_of_several_protocols_are_refused(
    make_rows: Callable[..., Rows], write_rows: Callable[..., Path]
) -> None:
    path = write_rows(make_rows(samples=6))
    scores = score([path], [protocol("strict"), protocol("mention")], bootstrap=FEW)
    with pytest.raises(UsageError, match="a report shows one protocol"):
        make_report(scores)


def test_lines_that_are_left_out_are_counted(
    make_rows: Callable[..., Rows],
    write_rows: Callable[..., Path],
    naturelm: Callable[..., Ran],
    read_page: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    rows = make_rows(samples=6)
    rows[3]["prediction"] = None
    path, out = write_rows(rows), tmp_path / "report"
    assert naturelm("report", path, "--output-path", out)[0] == 1
    code, _, errors = naturelm("report", path, "--output-path", out, "--on-error", "skip")
    assert code == 0
    assert "1 line with errors left out" in errors
    words = read_page(out).words
    assert words[words.index("Lines left out") + 1] == "1"


def test_tables_are_escaped() -> None:
    table = Table(
        "t", "A & B_1", ("class", "a|b"), (("50 % *of* {x} \\ ~^", Estimate(0.5, 0.25, 1.0)),)
    )
    assert "\\*of\\*" in markdown(table)
    assert "| a\\|b |" in markdown(table)
    text = latex(table)
    assert "50 \\% *of* \\{x\\} \\textbackslash{} \\textasciitilde{}\\textasciicircum{}" in text
    assert "A \\& B\\_1" in text
    assert "0.500 [0.250, 1.000] \\\\" in text
