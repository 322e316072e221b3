"""Names of clips and their folders that every system takes, each for one thing only.

A clip is `<species>/<confidence>_<recording>_<start>s_<end>s.wav`. Windows keeps some names for
devices, allows no dot at an end, and takes two spellings that differ in case for one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath

from NatureLM.util import digest

_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
_MOST_BYTES = 90  # of a part; a whole name has 255 at most, a path on Windows 260 characters
_MARK = 8  # hexadecimal digits that stand for what was cut off


def safe_name(text: str, otherwise: str = "unnamed") -> str:
    """The text as a part of a path, as near to itself as systems and spreadsheets allow.

    otherwise: what is called by nothing that can be written
    """
    name = unicodedata.normalize("NFC", text)
    name = "".join(one if one.isprintable() else " " for one in name)
    name = " ".join(_FORBIDDEN.sub("_", name).split()).strip(". ")
    name = re.sub(r"^[-=+@~＝＋－＠]", "_", name)  # noqa: RUF001
    if _DEVICES.fullmatch(name.partition(".")[0].strip()):
        name = f"_{name}"
    return _shortened(name) or otherwise


def _shortened(name: str) -> str:
    """A name that is too long, without its end and with a mark of what that was."""
    data = name.encode()
    if len(data) <= _MOST_BYTES:
        return name
    mark = digest(data, size=_MARK // 2).hex()
    kept = data[: _MOST_BYTES - _MARK - 1].decode("utf-8", "ignore")
    return f"{kept.rstrip('. ')}-{mark}"


def distinct_names(texts: Iterable[str], safe: Callable[[str], str] = safe_name) -> dict[str, str]:
    """A safe name for each text; of those that a disk would take for one, all but one are numbered.

    The same texts, in whatever order, have the same names.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for text in sorted(set(texts)):
        found[text] = free_name(safe(text), taken)
    return found


def free_name(name: str, taken: set[str], suffix: str = "") -> str:
    """The name, or with a number if that is taken; it is taken from now on."""
    made, number = name + suffix, 1
    while _folded(made) in taken:
        number += 1
        made = f"{name}-{number}{suffix}"
    taken.add(_folded(made))
    return made


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def recording_names(paths: Iterable[str]) -> dict[str, str]:
    """What recordings are called in names of clips: without suffix.

    Those of the same name, such as of two recorders, get the folders in front that tell them apart.
    """
    parts = {path: PurePath(path).with_suffix("").parts for path in sorted(set(paths))}
    deepest = max(map(len, parts.values()), default=0)
    names: dict[str, str] = {}
    for depth in range(1, min(deepest, 4) + 1):
        shown = {
            path: safe_name("-".join(one[-depth:]), "recording")
            for path, one in parts.items()
            if path not in names
        }
        counts = Counter(map(_folded, shown.values()))
        names |= {path: name for path, name in shown.items() if counts[_folded(name)] == 1}
    taken = set(map(_folded, names.values()))
    for path, one in parts.items():
        if path not in names:
            names[path] = free_name(safe_name("-".join(one[-2:]), "recording"), taken)
    return names


def clip_name(confidence: float | None, recording: str, start: float, end: float) -> str:
    """The name of a clip, without its suffix. start, end: seconds in the recording."""
    sure = "unscored" if confidence is None else f"{confidence:.3f}"
    return f"{sure}_{recording}_{_seconds(start)}s_{_seconds(end)}s"


def _seconds(value: float) -> str:
    """With one decimal at least, and three at most."""
    text = f"{value:.3f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def clip_paths(
    clips: Iterable[tuple[str, float | None, str, float, float]],
    recordings: Mapping[str, str],
) -> list[str]:
    """The path of each clip below the folder, with slashes, each another one.

    clips: label, confidence, path of the recording, start, end (seconds)
    recordings: what `recording_names` calls them
    """
    listed = list(clips)
    folders = distinct_names(label for label, *_ in listed)
    taken: set[str] = set()
    found = []
    for label, confidence, path, start, end in listed:
        name = clip_name(confidence, recordings[path], start, end)
        found.append(free_name(f"{folders[label]}/{name}", taken, ".wav"))
    return found
