"""Records what the commands say and write, so that two versions of the code can be compared.

    PYTHONPATH=OLD python scripts/record_outputs.py record before
    PYTHONPATH=NEW python scripts/record_outputs.py record after
    python scripts/record_outputs.py compare before after      # exits with 1 if anything differs

`PYTHONPATH` names the tree whose package, configurations and scripts are run; without it that is
the tree of this script. The commands are in recorded/commands.ini, their inputs are made by
recorded/inputs.py and are the same on every day; only the public surface is used. `--only GROUP`
(repeatable) restricts either verb to a section of commands.ini, and `--jobs` says how many groups
run at a time.

Of each command the recording keeps exit code, stdout, stderr, the files that it wrote or changed
(large binary ones as their digest), and the names of all files that are there after it, as they
are. NORMALISED lists what `compare` overlooks. Of a command that is killed nothing is kept but that
it was killed; of one that is stopped the exit code and the last line.
"""

from __future__ import annotations

import argparse
import configparser
import difflib
import filecmp
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from recorded.inputs import make_inputs

HERE = Path(__file__).resolve().parents[1]
PROGRAMS = HERE / "scripts" / "recorded" / "programs.py"
NORMALISED = [
    # Speeds, durations and what is left, in progress lines, summaries and logs.
    (r"[\d.]+ x real time", "<speed> x real time"),
    (r"[\d.]+ (answers|samples|windows|recordings)/s", r"<speed> \1/s"),
    (r"answers, [\d.]+/s", "answers, <speed>/s"),
    (r"\bin [\d.]+ (s|min|h)\b", "in <time>"),
    (r"(\d+ (h|min|s) )?\d+ (min|s) left", "<time> left"),
    (r'"(\w*per_second|\w*seconds_left|elapsed)": [\d.e+-]+', r'"\1": <time>'),
    # Lines in the middle of an experiment come every ten seconds.
    (r"(?m)^(\d+)/(?!\1 )\d+ answers.*\n", ""),
    # Versions of this package.
    (r"\b(naturelm|beans|NatureLM|naturelm-audio) v?\d+\.\d+\.\d+\S*", r"\1 <version>"),
    # Places that last as long as a process.
    (r"/tmp/tmp\w+", "<temporary>"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:<port>"),
]
"""Patterns in text and what stands for them. Besides, the folder of the work and that of the tree
are replaced by their names, pictures are compared by their size in pixels, and the event files of
TensorBoard, whose names and contents are times, are left out."""

LARGE = 1 << 20
_SECONDS = 300  # that a command may take


@dataclass(frozen=True)
class Step:
    """A command: its name, its words, and where it is ended from outside if it is."""

    group: str
    name: str
    words: tuple[str, ...]
    ended: tuple[str, ...] = ()
    """kill or stop, a file, how many lines it has then, and files that are removed after it."""

    @property
    def title(self) -> str:
        return f"{self.group}/{self.name}"


def read_groups(only: Sequence[str]) -> dict[str, list[Step]]:
    """The sections of commands.ini."""
    table = configparser.ConfigParser(
        delimiters=[":"], interpolation=configparser.ExtendedInterpolation()
    )
    table.optionxform = str  # type: ignore[assignment, method-assign]
    table.read(PROGRAMS.with_name("commands.ini"), encoding="utf-8")
    unknown = set(only) - set(table.sections())
    if unknown:
        raise SystemExit(f"--only {min(unknown)}: the groups are {', '.join(table.sections())}")
    groups = {}
    for group in only or table.sections():
        rows = [(name, shlex.split(table[group][name])) for name in table[group]]
        rows = [row for row in rows if row[0] not in table.defaults()]
        groups[group] = [step for name, words in rows for step in _steps(group, name, words)]
    return groups


def _steps(group: str, name: str, words: list[str]) -> Iterator[Step]:
    if words[0] in ("kill", "stop"):
        at = words.index("--")
        yield Step(group, name, tuple(words[at + 1 :]), tuple(words[:at]))
    elif words == ["all-configs"]:
        for path in sorted((tree() / "configs").rglob("*.yml")):
            config = path.relative_to(tree()).as_posix()
            if config.startswith("configs/surveys/"):
                continue
            plan = ["--data-path", "benchmark.jsonl", "--model", "naturelm-tiny", "--dry-run"]
            yield Step(group, config, ("naturelm", "infer", "--cfg-path", config, *plan))
            if "extended:" not in path.read_text(encoding="utf-8"):
                checked = ("naturelm", "train", "--cfg-path", config, "--check")
                yield Step(group, f"check {config}", checked)
    else:
        yield Step(group, name, tuple(words))


def tree() -> Path:
    """The tree whose code is run."""
    return Path(os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] or HERE).resolve()


# -- record ---------------------------------------------------------------------------------------


class Server:
    """A process that starts commands; see recorded/server.py."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, str(PROGRAMS.with_name("server.py"))]
        self.seconds = 0.0  # that the last command computed
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, argv: Sequence[str], folder: Path) -> tuple[int, bytes, bytes]:
        """Exit code, stdout and stderr."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            job = {"argv": argv, "folder": str(folder), "stdout": out.name, "stderr": err.name}
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            number = int(self._process.stdout.readline())
            timer = threading.Timer(_SECONDS, os.kill, (number, signal.SIGKILL))
            timer.start()
            code, seconds = self._process.stdout.readline().split()
            timer.cancel()
            self.seconds = float(seconds)
            return int(code), out.read(), err.read()


class Recorder:
    """Runs steps in folders under `work` and keeps what comes of them under `out`."""

    def __init__(self, out: Path, work: Path) -> None:
        self.out, self.work = out, work
        self.inputs = work / "inputs"
        self._local = threading.local()
        self.environment = {
            **{name: value for name, value in os.environ.items() if "NATURELM" not in name},
            "PYTHONPATH": str(tree()),
            "HF_HOME": str(work / "hub"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",  # PEFT writes the names of layers in the order of a set
            "TOKENIZERS_PARALLELISM": "false",
            "COLUMNS": "100",
            "TERM": "dumb",
            "NO_COLOR": "1",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        }

    def run_group(self, steps: Sequence[Step]) -> None:
        """Run the steps of a group in a folder of its own."""
        folder = self.work / steps[0].group
        shutil.copytree(self.inputs, folder)
        seen = _files(folder)
        given = set(seen)
        for step in steps:
            begun = time.monotonic()
            kept = self.out / step.title.replace(" ", "_")
            (kept / "files").mkdir(parents=True)
            code, stdout, stderr = self._run(step, folder)
            now = _files(folder)
            if step.ended:
                stdout, stderr = b"", b"".join(stderr.splitlines(keepends=True)[-1:])
            else:
                (kept / "listing").write_text("\n".join(sorted(now.keys() - given)) + "\n")
                for name in [name for name in now if now[name] != seen.get(name)]:
                    _keep(folder / name, kept / "files" / name)
            seen = now
            (kept / "command").write_text(shlex.join(step.words) + "\n")
            (kept / "exit").write_text(f"{code}\n")
            (kept / "stdout").write_bytes(stdout)
            (kept / "stderr").write_bytes(stderr)
            wall = time.monotonic() - begun
            print(f"{wall:6.1f} s {self._computed():6.1f} s  {code:4}  {step.title}", flush=True)

    def _computed(self) -> float:
        """Seconds that the last command computed, where a server started it."""
        server = getattr(self._local, "server", None)
        seconds = 0.0 if server is None else float(server.seconds)
        if server is not None:
            server.seconds = 0.0
        return seconds

    def _run(self, step: Step, folder: Path) -> tuple[int, bytes, bytes]:
        """Exit code, stdout and stderr."""
        if step.words[0] in ("same", "same-rows"):
            one, other = ((folder / name).read_bytes() for name in step.words[1:])
            if step.words[0] == "same-rows":
                return int(sorted(one.splitlines()) != sorted(other.splitlines())), b"", b""
            return int(one != other), b"", b""
        command = self._command(step.words)
        if step.words[0] in ("naturelm", "beans") and not step.ended:
            if not hasattr(self._local, "server"):
                self._local.server = Server(self.environment)
            run: tuple[int, bytes, bytes] = self._local.server.run(step.words, folder)
            return run
        if step.ended:
            return _end(command, step.ended, folder, self.environment)
        try:
            done = subprocess.run(
                command, cwd=folder, env=self.environment, capture_output=True, timeout=_SECONDS,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return 124, b"", b"it takes too long\n"
        return done.returncode, done.stdout, done.stderr

    def _command(self, words: Sequence[str]) -> list[str]:
        first, *rest = (word.replace("TREE", str(tree())) for word in words)
        if first in ("naturelm", "beans"):
            program = f"from NatureLM.cli.main import {first}; {first}()"
            return [sys.executable, "-c", f"import sys; sys.argv[0] = '{first}'; {program}", *rest]
        if first == "api":
            return [sys.executable, str(PROGRAMS), "api"]
        if first == "app":
            return [sys.executable, str(PROGRAMS), "app", *self._command(["naturelm"])]
        assert first == "python", first
        return [sys.executable, *rest]


def _end(
    command: list[str], ended: Sequence[str], folder: Path, environment: dict[str, str]
) -> tuple[int, bytes, bytes]:
    """Kill or stop a command when a file has so many lines, and tidy up what depends on when."""
    how, name, count, *drop = ended
    path, lines = folder / name, int(count)
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=stderr
        )
        deadline = time.monotonic() + _SECONDS
        while _lines(path) < lines:
            if process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
        code = process.wait()
        stderr.seek(0)
        said = stderr.read()
    if how == "stop":
        return code, b"", said
    if lines:
        whole = path.read_bytes().splitlines(keepends=True)[:lines]
        path.write_bytes(b"".join(whole) + whole[0][:20])
    for pattern in drop:
        for found in folder.glob(pattern):
            shutil.rmtree(found) if found.is_dir() else found.unlink()
    return code, b"", b""


def _lines(path: Path) -> int:
    """How many whole lines a file has; -1 where it is not there."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return -1


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Path in the folder → time of change and size."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tfevents" not in path.name
    }


def _keep(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.stat().st_size < LARGE:
        shutil.copy(path, target)
    else:
        target.write_text(f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}\n")


def record(out: Path, only: Sequence[str], jobs: int) -> int:
    """Run the commands and keep what comes of them in `out`."""
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out}: is not empty")
    out.mkdir(parents=True, exist_ok=True)
    groups = read_groups(only)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="record-") as name:
        work = Path(name).resolve()
        recorder = Recorder(out, work)
        make_inputs(recorder.inputs, HERE, tree() / "configs")
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(recorder.run_group, steps) for steps in groups.values()]:
                done.result()
    about = {"work": str(work), "tree": str(tree()), "python": sys.executable}
    (out / "about.json").write_text(json.dumps(about) + "\n")
    count = sum(map(len, groups.values()))
    print(f"{count} commands in {time.monotonic() - begun:.0f} s, kept in {out}")
    return 0


# -- compare --------------------------------------------------------------------------------------


def compare(before: Path, after: Path, only: Sequence[str]) -> int:
    """Print what differs; 1 if anything does."""
    places = [_places(before), _places(after)]
    titles = sorted(
        {path.parent.relative_to(side).as_posix() for side in (before, after)
         for path in side.glob("*/**/command")}
    )  # fmt: skip
    titles = [title for title in titles if not only or title.split("/")[0] in only]
    different = 0
    for title in titles:
        found = list(_differences(before / title, after / title, places))
        different += bool(found)
        for text in found:
            print(f"{title}: {text}")
    print(f"{different} of {len(titles)} commands differ")
    return int(bool(different))


def _places(recording: Path) -> dict[str, str]:
    about = json.loads((recording / "about.json").read_text())
    return {about["work"]: "<work>", about["tree"]: "<tree>", about["python"]: "<python>"}


def _differences(before: Path, after: Path, places: list[dict[str, str]]) -> Iterator[str]:
    names = [
        {path.relative_to(side).as_posix() for path in side.rglob("*") if path.is_file()}
        for side in (before, after)
    ]
    for name in sorted(names[0] ^ names[1]):
        yield f"{name} is only {'before' if name in names[0] else 'after'}"
    for name in sorted(names[0] & names[1]):
        one, other = (side / name for side in (before, after))
        if filecmp.cmp(one, other, shallow=False):
            continue
        texts = [_text(path, place) for path, place in zip((one, other), places, strict=True)]
        if name.endswith(".png"):
            sizes = [struct.unpack(">II", path.read_bytes()[16:24]) for path in (one, other)]
            if sizes[0] != sizes[1]:
                yield f"{name}: {sizes[0]} pixels before, {sizes[1]} after"
        elif texts[0] is None or texts[1] is None:
            yield f"{name}: the bytes differ"
        elif texts[0] != texts[1]:
            yield f"{name}\n{_shown(texts[0], texts[1])}"


def _text(path: Path, places: dict[str, str]) -> str | None:
    """The text of a file without what may change; None for a file that is no text."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    for place, name in places.items():
        text = text.replace(place, name)
    for pattern, name in NORMALISED:
        text = re.sub(pattern, name, text)
    return text


def _shown(before: str, after: str) -> str:
    """The first lines of the difference."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    shown = [line[:300] for line in lines if not line.startswith(("---", "+++"))]
    more = [f"... {len(shown) - 12} more lines"] if len(shown) > 12 else []
    return "\n".join(f"    {line}" for line in [*shown[:12], *more])


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, folders in (("record", ["OUT"]), ("compare", ["BEFORE", "AFTER"])):
        its = verbs.add_parser(verb)
        for name in folders:
            its.add_argument(name, type=Path)
        its.add_argument("--only", action="append", default=[], metavar="GROUP")
        its.add_argument("--jobs", type=int, default=2, help="groups at a time")
    given = parser.parse_args()
    if given.verb == "record":
        return record(given.OUT, given.only, given.jobs)
    return compare(given.BEFORE, given.AFTER, given.only)


if __name__ == "__main__":
    sys.exit(main())
