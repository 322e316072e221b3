"""Lines of JSON objects from files, plain or gzipped, one at a time."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from NatureLM.beans.scoring.problems import Problem, Problems
from NatureLM.errors import UsageError

SUFFIXES = (".jsonl", ".jsonl.gz")
METRICS = "_metrics.jsonl"
_GZIP = b"\x1f\x8b"
_MARK = b"\xef\xbb\xbf"  # some editors begin UTF-8 with it


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files as named, and every .jsonl and .jsonl.gz of a folder, sorted.

    Metrics that a run has left beside its answers (`..._metrics.jsonl`) are passed over.

    Raises UsageError for a path that is not there, a folder without such files, or a file named
    twice.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(inside for inside in path.iterdir() if _is_meant(inside))
            if not inside:
                raise UsageError(f"{path}: the folder holds no {' or '.join(SUFFIXES)} file")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"{path}: there is no such file")
    if not found:
        raise UsageError("name at least one file of answers")
    seen: dict[Path, Path] = {}
    for path in found:
        if other := seen.get(path.resolve()):
            raise UsageError(f"{path}: named twice (the other time as {other})")
        seen[path.resolve()] = path
    return found


def read_objects(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and object of each line; empty lines are passed over.

    What is no JSON object becomes a problem, and so does the place where a damaged file ends.
    """
    number = 0
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = _parse(line.removeprefix(_MARK) if number == 1 else line)
                if isinstance(row, dict):
                    yield number, row
                else:
                    problems.add(Problem(str(path), number, "not JSON", row))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"the gzip data is damaged or cut short here ({error}); lines after it are lost"
        problems.add(Problem(str(path), number + 1, "damaged file", message))
    except OSError as error:
        message = f"cannot be read ({error.strerror or error})"
        problems.add(Problem(str(path), None, "damaged file", message))


def _is_meant(path: Path) -> bool:
    return path.name.endswith(SUFFIXES) and not path.name.endswith(METRICS) and path.is_file()


def _open(path: Path) -> IO[bytes]:
    stream = path.open("rb")
    if stream.peek(2)[:2] == _GZIP:
        return gzip.open(stream)  # type: ignore[return-value]
    if path.suffix == ".gz":
        stream.close()
        raise gzip.BadGzipFile("no gzip data")
    return stream


def _parse(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or what is wrong with it."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return "is no UTF-8 text; one JSON object a line is needed"
    except json.JSONDecodeError as error:
        return f"is no JSON ({error.msg} at character {error.pos + 1}); one object a line is needed"
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        return f"cannot be read as JSON ({error}); one object a line is needed"
    if isinstance(row, dict):
        return row
    return f"holds a JSON {_KINDS[type(row)]}; one object a line is needed"


_KINDS: dict[type, str] = {
    list: "list",
    str: "text",
    int: "number",
    float: "number",
    bool: "truth value",
    type(None): "null",
}
