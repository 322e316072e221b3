"""A season of field work through every command, with each time in each table checked.

    python benchmarks/field_season.py [--files 2000] [--folder DIR] [--also DIR] [--json FILE]

Makes two archives (`field_archive.py`): one of 50 recordings, and the season of 2,000, of which one
lasts 24 hours. Both go through survey, events, segments, review, calibrate, report and export to
every format, each command a process of its own. Shown are the seconds of the clock and the peak of
memory of all its processes, and by how much the season's is higher. The survey of the season is
killed twice on the way and called again; beside it runs one that nobody disturbs, and their rows
must be the same. The server of the review page is killed twice, too. Every table is then compared
with what is true (`field_checks.py`, `field_tables.py`). Ends with 1 where a time is wrong, rows
differ, or memory grows by more than 100 MB. Linux.

--also DIR lets recordings of your own go through the commands, which must end well; of them no
truth is known.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import field_archive
import psutil
from field_checks import Findings, Season, check_answers, check_events, detections, rows, summary
from field_tables import CHECKS, Expected, check_clips, check_report, parts, table
from measure import NATURELM, free_port, machine, options_for, write_figures

MOST_GROWTH = 100.0  # MB
WINDOW, HOP = 10.0, 27.5
QUESTIONS = """\
title: A season
window_length_seconds: 10
hop_length_seconds: 27.5
columns:
  animal:
    question: Is there an animal in the audio?
    type: yes_no
  species:
    question: What is the common name for the focal species in the audio?
    type: choice
    labels: [Common Cuckoo, European Nightjar, Barn Owl, American Toad, Gray Wolf]
"""
NAMES = ("small", "season", "also")
LAST_DIGIT = 2e-6  # of confidences
SOME_BROKEN = (0, 3)
_HIGHEST = re.compile(r"VmHWM:\s+(\d+)")


@dataclass
class Run:
    """A command that ran: seconds of the clock, peak of memory in MB, and what it printed."""

    name: str
    seconds: float
    mb: float
    code: int
    printed: str = ""

    def plain(self) -> dict[str, Any]:
        return {"name": self.name, "seconds": round(self.seconds, 1), "mb": round(self.mb)}


class Process:
    """A command in a process of its own, whose memory is watched."""

    def __init__(self, name: str, arguments: Sequence[object], folder: Path) -> None:
        self.name, self._start = name, time.perf_counter()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.popen = subprocess.Popen(
            [*NATURELM, *map(str, arguments)],
            cwd=folder,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        # What the kernel says of a process that has ended counts what started it, too.
        status = Path(f"/proc/{self.popen.pid}/status")
        with suppress(psutil.Error, OSError):
            own, children = psutil.Process(self.popen.pid), 0
            for number in count():
                most = _HIGHEST.search(status.read_text())
                if most is None:
                    return
                if number % 20 == 0:  # to look for them takes a while
                    children = _of_children(own)
                self._peak = max(self._peak, int(most[1]) * 1024 + children)
                time.sleep(0.05)

    def kill(self) -> None:
        """As a loss of power ends it."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    def wait(self) -> Run:
        self.popen.wait()
        seconds = time.perf_counter() - self._start
        return Run(self.name, seconds, self._peak / 1e6, self.popen.returncode, self.printed)

    @property
    def printed(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")


def _of_children(process: psutil.Process) -> int:
    total = 0
    for one in process.children(recursive=True):
        with suppress(psutil.Error):
            total += one.memory_info().rss
    return total


class Pass:
    """Recordings through all commands.

    folder: of the archive; one without a table of truths is not checked
    out: for the tables
    """

    def __init__(
        self, folder: Path, out: Path | None = None, show: Callable[[str], None] = print
    ) -> None:
        self.folder = folder.resolve()
        self.out = (out or folder / "out").resolve()
        is_made = (folder / field_archive.TRUTH).is_file()
        self.season = Season(folder) if is_made else None
        self.runs: list[Run] = []
        self.found: dict[str, Findings] = {}
        self.problems: list[str] = []
        self._show = show
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "questions.yml").write_text(QUESTIONS, encoding="utf-8")

    def run(self, name: str, *arguments: object, allowed: Sequence[int] = (0,)) -> Run:
        """Run a command to its end and note what it took."""
        return self._done(Process(name, arguments, self.folder).wait(), allowed)

    def _done(self, run: Run, allowed: Sequence[int] = (0,)) -> Run:
        self.runs.append(run)
        self._show(f"{run.name:28s} {run.seconds:7.1f} s {run.mb:7.0f} MB")
        if run.code not in allowed:
            self.problems.append(f"{run.name} ended with {run.code}: {run.printed[-1500:]}")
            self._show(self.problems[-1])
        return run

    def check(self, name: str, check: Callable[[Findings, Season], None]) -> None:
        """Compare a table with the truth, where that is known."""
        if self.season is None:
            return
        found = Findings()
        try:
            check(found, self.season)
        except Exception as error:  # a table that cannot be read is wrong, too
            found.wrong.append(f"{name}: {type(error).__name__}: {error}")
        self.found[name] = found
        self._show(f"  {name}: {summary(found)}")

    # Commands

    def survey(self, out: str = "survey", title: str = "survey", *, kills: int = 0) -> Path:
        """The survey into a folder; killed on the way so many times, and called again each time."""
        answers = self.out / out / "survey.jsonl"
        command = ["survey", self.out / "questions.yml", *folders(self.folder), "--quiet"]
        command += ["--output-path", self.out / out]
        if (self.folder / field_archive.DEPLOYMENTS).is_file():
            command += ["--deployments", field_archive.DEPLOYMENTS]
        for number in range(kills):
            process = Process("survey, killed", command, self.folder)
            least = len(self.season.truths) * (number + 1) // (kills + 1) if self.season else 1
            while process.popen.poll() is None and _lines(answers) < least:
                time.sleep(0.05)
            process.kill()
            self._done(process.wait(), [-signal.SIGKILL])
        self.run(title, *command, allowed=SOME_BROKEN)
        return answers

    def events(self, answers: Path) -> Path:
        """Windows that follow each other with the same species are one event."""
        made = self.out / "events.jsonl"
        options = ["--column", "species", "--gap", HOP - WINDOW]
        self.run("events", "events", answers, "--output-path", made, *options, allowed=SOME_BROKEN)
        return made

    def segments(self, events: Path) -> Path:
        """Clips of the events, which must sound as the recordings do there."""
        made = self.out / "clips"
        self.run("segments", "segments", events, "--output-path", made, allowed=SOME_BROKEN)
        self.check("segments.csv", lambda found, true: check_clips(found, made, true))
        return made

    def review(self, clips: Path) -> None:
        """Verdicts through the page's server, which is killed twice on the way."""
        listed = table(clips / "segments.csv")
        step = max(1, -(-len(listed) // 3))
        for first in range(0, len(listed), step):
            with self._server(clips) as ask:
                for row in listed[first : first + step]:
                    verdict = {"reviewer": "Ada", "verdict": self._verdict(row)}
                    ask("/api/verdicts", {"clip": row["clip"], **verdict})
                there = ask("/api/verdicts?reviewer=Ada")["verdicts"]
                self.same("verdicts", len(there), min(first + step, len(listed)))
        kept = {row["clip"] for row in table(clips / "review.csv") if row["reviewer"] == "Ada"}
        self.same("clips in review.csv", len(kept), len(listed))

    @contextmanager
    def _server(self, clips: Path) -> Iterator[Callable[..., Any]]:
        """The review page's server, as a function that asks it; it is killed in the end."""
        port = free_port()
        server = Process("review", ["review", clips, "--port", port], self.folder)
        address = f"http://127.0.0.1:{port}"

        def ask(path: str, sent: Any = None) -> Any:
            data = None if sent is None else json.dumps(sent).encode()
            headers = {"Content-Type": "application/json", "Origin": address}
            request = urllib.request.Request(address + path, data, headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        try:
            while server.popen.poll() is None:
                with suppress(OSError):
                    ask("/api/clips")
                    break
                time.sleep(0.1)
            yield ask
        finally:
            server.kill()
            self._done(server.wait(), [-signal.SIGKILL])

    def _verdict(self, row: Mapping[str, str]) -> str:
        """What somebody would say who knows what is in the recording."""
        calls = self.season.of(row["recording"]).calls if self.season else ""
        for call in filter(None, calls.split("; ")):
            label, _, span = call.rpartition(" ")
            start, end = map(float, span.split("-"))
            if label == row["label"] and start < float(row["end"]) and end > float(row["start"]):
                return "yes"
        return "no"

    def calibrate(self, clips: Path) -> None:
        """Thresholds from the verdicts."""
        self.run("calibrate", "calibrate", clips)

    def report(self, answers: Path) -> None:
        """The page about the season."""
        made = self.out / "report"
        options = ["--output-path", made, "--column", "species"]
        self.run("report", "report", answers, *options, allowed=SOME_BROKEN)
        self.check(
            "report",
            lambda found, true: check_report(found, made / "tables", expected(true, answers)),
        )

    def export(self, answers: Path, *, per_recording: bool = False) -> None:
        """Every format, and each table checked."""
        from NatureLM.formats import FORMATS

        compared_with = expected(self.season, answers) if self.season else None
        kind = f" of {answers.stem}" + (", per recording" if per_recording else "")
        for name, known in FORMATS.items():
            if per_recording and (known.is_one or known.is_each):
                continue
            is_each = per_recording or known.is_each
            made = self.out / "tables" / f"{answers.stem}-{name}{'' if is_each else known.suffix}"
            options = ["--format", name, "--output-path", made]
            options += ["--per-recording"] if is_each else []
            # Camtrap DP is refused where no recording has a zone and a place.
            allowed = [0, 2] if known.is_one and self.season is None else [0]
            run = self.run(f"export {name}{kind}", "export", answers, *options, allowed=allowed)
            if run.code == 0:
                paths = parts(made, known.suffix, per_recording=is_each)
                check = partial(CHECKS[name], paths=paths, expected=compared_with)
                self.check(f"{name}{kind}", lambda found, true, check=check: check(found))

    def same(self, what: str, found: Any, expected: Any) -> None:
        """Note what is not as it should be."""
        if found != expected:
            self.problems.append(f"{what}: {found}, and {expected} is right")
            self._show(self.problems[-1])


def expected(season: Season, answers: Path) -> Expected:
    """What tables of these answers are compared with."""
    return Expected(season, answers, *detections(season, answers))


def folders(folder: Path) -> list[str]:
    """The folders of the sites, as options; the folder itself where there are none."""
    sites = dict.fromkeys(card.folder.split("/")[0] for card in field_archive.CARDS)
    there = [site for site in sites if (folder / site).is_dir()] or [str(folder)]
    return [word for site in there for word in ("--audio-path", site)]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def everything(one: Pass, kills: int = 0, before_rest: Callable[[], None] = lambda: None) -> None:
    """All commands, one after another; `before_rest` is called behind the survey."""
    answers = one.survey(kills=kills)
    before_rest()
    one.check("survey.jsonl", lambda found, true: check_answers(found, true, answers, WINDOW, HOP))
    events = one.events(answers)
    one.check("events.jsonl", lambda found, true: check_events(found, true, events))
    clips = one.segments(events)
    one.review(clips)
    one.calibrate(clips)
    one.report(answers)
    one.export(answers)
    one.export(events)
    one.export(answers, per_recording=True)


def compared(undisturbed: Path, killed: Path) -> tuple[int, int]:
    """How many rows of two surveys there are, and how many of them differ.

    Their order is not compared, as recordings that could not be read are tried again; confidences
    may differ in their last digit, as windows meet in other batches.
    """
    one, other = ({_key(row): row for row in rows(path)} for path in (undisturbed, killed))
    differ = len(one.keys() ^ other.keys())
    differ += sum(not _is_same(one[key], other[key]) for key in one.keys() & other.keys())
    return len(one), differ


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["audio_path"], row.get("start"), row.get("error")


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    sure, sure_too = one.get("confidences") or {}, other.get("confidences") or {}
    if {**one, "confidences": None} != {
        **other,
        "confidences": None,
    } or sure.keys() != sure_too.keys():
        return False
    return all(abs(sure[name] - sure_too[name]) < LAST_DIGIT for name in sure)


def growth(small: Sequence[Run], large: Sequence[Run]) -> dict[str, float]:
    """By how many MB the peak of each command is higher on the large archive."""
    peaks = [_peaks(runs) for runs in (small, large)]
    return {name: round(peaks[1][name] - mb) for name, mb in peaks[0].items() if name in peaks[1]}


def _peaks(runs: Sequence[Run]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in runs:
        found[_command(one.name)] = max(one.mb, found.get(_command(one.name), 0.0))
    return found


def _command(name: str) -> str:
    """What tables call a run: `export csv` for all tables that it made."""
    return name.removesuffix(", killed").partition(" of ")[0]


def measure(folder: Path, files: int, also: Path | None, *, day: bool) -> dict[str, Any]:
    """Both archives and other recordings through everything, and what is wrong."""
    passes = []
    for name, number, has_day in ((NAMES[0], 50, False), (NAMES[1], files, day)):
        place = folder / name
        if not (place / field_archive.TRUTH).is_file():
            place.mkdir(parents=True, exist_ok=True)
            field_archive.make(place, number, day=has_day)
        passes.append(Pass(place))
    small, large = passes
    everything(small)
    twin = threading.Thread(target=lambda: large.survey("undisturbed", "survey, undisturbed"))
    twin.start()
    everything(large, kills=2, before_rest=twin.join)
    count_rows, differ = compared(
        *(large.out / n / "survey.jsonl" for n in ("undisturbed", "survey"))
    )
    large.same("rows that differ after two kills", differ, 0)
    if also is not None:
        passes.append(Pass(also, folder / "also"))
        everything(passes[-1])
    return {
        "machine": machine(),
        "files": sum(1 for _ in field_archive.read(large.folder)),
        "rows": count_rows,
        "runs": dict(
            zip(NAMES, ([run.plain() for run in one.runs] for one in passes), strict=False)
        ),
        "growth": growth(small.runs, large.runs),
        "times": sum(found.times for one in passes for found in one.found.values()),
        "wrong": [text for one in passes for f in one.found.values() for text in f.wrong],
        "problems": [text for one in passes for text in one.problems],
    }


def markdown(report: Mapping[str, Any]) -> str:
    """A table of what each command took; several runs of one are in the order of the work."""
    lines = [
        "| command | seconds | peak of memory | more than with 50 recordings |",
        "|---|---|---|---|",
    ]
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for run in report["runs"][NAMES[1]]:
        runs.setdefault(_command(run["name"]), []).append(run)
    for name, some in runs.items():
        seconds = " + ".join(f"{one['seconds']:.0f}" for one in some)
        more = report["growth"].get(name)
        shown = "" if more is None else f"{more:+.0f} MB"
        lines.append(f"| {name} | {seconds} | {max(r['mb'] for r in some):.0f} MB | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Run and print; ends with 1 where something is wrong."""
    parser = options_for(__doc__, "json")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--without-day", action="store_true", help="no recording of 24 hours")
    parser.add_argument("--folder", type=Path, help="where archives and tables stay")
    parser.add_argument("--also", type=Path, help="a folder of other recordings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        report = measure(folder, options.files, options.also, day=not options.without_day)
    print(markdown(report))
    write_figures(options.json, report)
    grown = {name: mb for name, mb in report["growth"].items() if mb > MOST_GROWTH}
    wrong = [
        *report["wrong"],
        *report["problems"],
        *(f"{n}: +{m:.0f} MB" for n, m in grown.items()),
    ]
    print(f"{report['times']} things compared; {len(wrong)} are wrong")
    if wrong:
        raise SystemExit("\n".join(wrong[:20]))


if __name__ == "__main__":
    main()
