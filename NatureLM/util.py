"""Helpers that know nothing of sound: files, hashes, sizes, durations, prefetching.

Sizes are in bytes, as people write and read them: 1 GB is 10**9 bytes, 1 GiB is 2**30.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import json
import logging
import math
import os
import re
import reprlib
import secrets
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from NatureLM.errors import NatureLMError, UsageError

if TYPE_CHECKING:
    import numpy

logger = logging.getLogger(__name__)


@contextmanager
def atomic_write(target: Path, *, alone: bool = False) -> Iterator[Path]:
    """A path beside `target` to write to, which takes its place when the block ends well.

    Otherwise what was written goes, and `target` is as before. A link stays one: the file that it
    leads to is written. A device or a pipe, such as /dev/stdout, is written into.

    alone: nobody else writes the file meanwhile, so that the rest which a killed program left is
        written over; otherwise each block has a name of its own, and the last to end wins
    """
    if is_special(target):
        with tempfile.TemporaryDirectory() as folder:
            unfinished = Path(folder, "made")
            yield unfinished
            with open(unfinished, "rb") as made, open(target, "wb", buffering=0) as device:
                shutil.copyfileobj(made, device)
        return
    target = Path(os.path.realpath(target))
    own = "" if alone else f".{os.getpid()}-{secrets.token_hex(4)}"
    # The longest name that a file may have leaves no room for more.
    name = target.name if len(os.fsencode(target.name)) < 200 else digest(target.name).hex()[:40]
    unfinished = target.with_name(f".{name}{own}.partial")
    try:
        yield unfinished
        unfinished.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def writing(place: Path, advice: str = "") -> Iterator[None]:
    """What the system says against writing within the block becomes one sentence."""
    try:
        yield
    except OSError as error:  # numpy's has no number
        reason = error.strerror or str(error)
        raise NatureLMError(f"{place}: cannot be written ({reason}){advice}") from None


def write_data(path: Path, data: bytes) -> Path:
    """A file, whole or not at all, in a folder that is made where it is not there; its path.

    Raises UsageError where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent}: cannot be made a folder ({error.strerror})") from None
    try:
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def is_special(path: Path) -> bool:
    """Whether a path leads to a device or a pipe, which is written into and never replaced."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def check_place(place: Path, option: str, *, folder: bool = False) -> None:
    """Try whether a file, or files in a folder, can be written: before long work, not after it.

    option: what says so, for the message; a name of an option, or a key of the configuration

    Nothing is left behind, and what is there stays as it is. Raises UsageError.
    """
    said, made = f"{option} {place}", list[Path]()
    try:
        real = Path(os.path.realpath(place))
        home = real if folder else real.parent
        if not folder and real.is_dir():
            raise UsageError(f"{said}: is a folder; give the name of a file")
        if not folder and is_special(place):
            return
        for one in (*reversed(home.parents), home):
            if not os.path.lexists(one):
                one.mkdir()
                made.append(one)
            elif not one.is_dir():
                what = "is" if one == home == real else f"{one} is"
                raise UsageError(f"{said}: {what} a file, and a folder is needed there")
        with tempfile.TemporaryFile(dir=home, buffering=0) as file:
            file.write(bytes(4096))
        if not folder and real.exists() and not os.access(real, os.W_OK):
            raise UsageError(f"{said}: is there and may not be written over; give another name")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{said}: cannot be written ({reason}); give another place") from None
    finally:
        for one in reversed(made):
            with contextlib.suppress(OSError):
                one.rmdir()


def write_text(path: Path, text: str) -> Path:
    """UTF-8; halves of characters, which JSON can hold, are escaped."""
    return write_data(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Any) -> Path:
    """JSON; NaN becomes null."""
    text = json.dumps(without_nan(content), ensure_ascii=False, indent=1, allow_nan=False)
    return write_text(path, text + "\n")


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, which refuses by ValueError alone: values that are nested too deep as well."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deep") from None


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def shown(value: object) -> str:
    """A value of a stranger's file as messages show it: what it begins and ends with."""
    return _SHORT.repr(value)


def without_nan(content: Any) -> Any:
    """The same, with null for NaN and infinities, which JSON does not have."""
    if isinstance(content, Mapping):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def csv_writer(file: Any, *, lineterminator: str = "\n", **dialect: Any) -> Any:
    """`csv.writer` that quotes every line break.

    Where lines end with a line feed alone, Python leaves a carriage return as it is, and readers
    end the row there.
    """

    def write(line: str) -> int:
        return int(file.write(line.removesuffix("\r\n") + lineterminator))

    return csv.writer(SimpleNamespace(write=write), lineterminator="\r\n", **dialect)


def library(module: str, absent: str, kind: type[NatureLMError] = UsageError) -> Any:
    """A module of a library that not everybody has installed.

    absent: what to say where it is not installed: what needs it, and how to get it

    Raises `kind`, with what is wrong if the library is there and cannot be loaded.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise kind(why_not_loaded(error, module.partition(".")[0], absent)) from error


def why_not_loaded(error: ImportError, name: str, absent: str) -> str:
    """What to say of an optional library that was not loaded: see `library`."""
    missing = (error.name or "").partition(".")[0] if type(error) is ModuleNotFoundError else ""
    if missing == name:
        return absent
    if missing:
        return f"{name} needs {missing}, which is not installed: pip install {missing}"
    reason = (str(error).strip() or "ImportError").splitlines()[0]
    return f"{name} is installed, and cannot be loaded: {reason}"


def digest(
    chunks: Any, algorithm: Literal["sha256", "blake2b"] = "sha256", *, size: int = 32
) -> bytes:
    """The first `size` bytes of the hash of a string (as UTF-8), of bytes, or of chunks of these.

    Anything that holds contiguous bytes, such as an array, counts as bytes. Of blake2b it is the
    hash of that length, which is not the beginning of a longer one.
    """
    state = hashlib.sha256() if algorithm == "sha256" else hashlib.blake2b(digest_size=size)
    with contextlib.suppress(TypeError):  # bytes or an array, whose numbers are no chunks
        chunks = (memoryview(chunks),)
    for chunk in (chunks,) if isinstance(chunks, str) else chunks:
        state.update(chunk.encode() if isinstance(chunk, str) else chunk)
    return state.digest()[:size]


def derive_seed(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for `keys` under a `seed`; equal on every machine and Python."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    return int.from_bytes(digest(text, "blake2b", size=8), "big") >> 1


def generator(seed: int, *keys: int | str) -> numpy.random.Generator:
    """A fresh numpy generator for `keys` under a `seed`."""
    import numpy

    return numpy.random.Generator(numpy.random.PCG64(derive_seed(seed, *keys)))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return digest(iter(lambda: file.read(1 << 20), b"")).hex()


def did_you_mean(word: str, known: Iterable[str], shown: str = "{!r}") -> str:
    """`; did you mean 'x'?` with the known word that is nearest, or an empty string.

    shown: format of the word
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {shown.format(near[0])}?" if near else ""


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str | int, option: str = "the number of bytes") -> int:
    """Bytes of `4GB`, `512 MiB` or `1000000`.

    option: what messages call it

    Raises UsageError for anything else, and for none.
    """
    if isinstance(text, int):
        size = text
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
        if match is None:
            raise UsageError(f"{option} is {text!r}; give a size such as 4GB, 512MB or 2GiB")
        number, unit = match.groups()
        size = int(float(number) * _UNITS[unit or ""])
    if size < 1:
        raise UsageError(f"{option} is {text!r}, and it must be above 0")
    return size


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise UsageError for a number outside of its bounds, or NaN; `name` is what gives it."""
    if not low <= value <= high:
        most = "" if math.isinf(high) else f" and at most {high:,}"
        raise UsageError(f"{name} is {value:,}, and it must be at least {low:,}{most}")


def format_bytes(size: float) -> str:
    """A size for people: `1.5 GB`, `20 MB`, `5 bytes`."""
    if size < 1000:
        return f"{size:g} bytes"
    shown = ""
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        shown = f"{size:.1f}".removesuffix(".0") + f" {unit}"
        if size < 999.95:
            break
    return shown


def format_duration(seconds: float, *, short: bool = False) -> str:
    """A duration for people: `6.4 s`, `3 min 20 s`, `2 h 5 min`.

    short: rounded, to three digits below a minute, without parts that are 0: `0.125 s`, `5 min`
    """
    if seconds < 60:
        return f"{seconds:.3g} s" if short else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds) if short else int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min")] if hours else [(minutes, "min"), (rest, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number or not short)


Item = TypeVar("Item")


def prefetch(
    streams: Iterable[Iterator[Item]], *, workers: int = 2, chunk: int = 8
) -> Iterator[Item]:
    """All items of one stream after the other, while the next ones are being made.

    workers: streams that run at once, each in one thread at a time
    chunk: items that a stream is run on at a time; so at most (workers + 1) x chunk are held

    What a stream raises is raised here. Streams must not share state.
    """
    coming = iter(streams)
    running: deque[tuple[Iterator[Item], Future[list[Item]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="naturelm-ahead") as pool:

        def run_on(stream: Iterator[Item]) -> tuple[Iterator[Item], Future[list[Item]]]:
            return stream, pool.submit(lambda: list(islice(stream, chunk)))

        try:
            while True:
                running.extend(map(run_on, islice(coming, workers - len(running))))
                if not running:
                    return
                stream, made = running.popleft()
                items = made.result()
                going_on = stream if len(items) == chunk else next(coming, None)
                if going_on is stream:
                    running.appendleft(run_on(stream))
                elif going_on is not None:
                    running.append(run_on(going_on))
                items.reverse()
                while items:  # what was taken is not held here any longer
                    yield items.pop()
        finally:
            for _, made in running:
                made.cancel()


def why_not_finite(model: Any, lacking: str) -> str:
    """Why a model's results are NaN or infinite: weights that are, else its precision.

    lacking: what there is none of then
    """
    import torch

    for name, tensor in getattr(model, "state_dict", dict)().items():
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        # It takes no memory, and passes NaN on.
        if not all(math.isfinite(value) for value in torch.aminmax(tensor.detach())):
            return (
                f"the model's weights are broken, so there is no {lacking}: {name} holds NaN or "
                "infinity; get the checkpoint again, or train without what made it so"
            )
    return (
        f"the model's numbers became too large for its precision, so there is no {lacking}: "
        "choose another one with --dtype (bfloat16 or float32)"
    )
