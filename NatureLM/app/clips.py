"""Files that a visitor puts into a tab: checked, kept under names of the app, made into clips.

Everything of a clip comes from the windows that the model hears: the picture, the copy that the
browser plays, the times.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.app.settings import Limits
from NatureLM.audio import AudioError, find_recordings
from NatureLM.audio.decode import RecordingInfo, SoundLimits, probe
from NatureLM.audio.windows import Window, iter_windows
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.reports.clips import Levels, columns_per_second, contrast, levels_of, picture
from NatureLM.util import format_bytes, format_duration

logger = logging.getLogger(__name__)

SLOW_FACTOR = 10
_WINDOW_SECONDS = 10.0
_SILENCE = {
    "silent": "It is silent: whatever the model answers is a guess.",
    "constant": "Its samples are all the same: whatever the model answers is a guess.",
    "cancelled": "Its channels cancel each other, so that nothing is left to be heard.",
}
_LATE = 4  # clips that were taken out and whose files are kept for the moment
_LONGEST_NAME = 120
# From the root, the home folder or a drive: 1/2 and org/model are no paths.
_PATH = re.compile(
    r"(?<![\w./\\:~-])(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s'\"<>|]+)*[/\\](?=[^/\\\s])([^/\\\s'\"<>|]*)"
)
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


@dataclass(frozen=True)
class Clip:
    """One clip.

    id: unguessable
    name: as the visitor knows it; text, not a path
    path: the file itself
    seconds: length of the recording
    slowed: how many times slower it is heard (time expansion)
    spans: start and end of its windows, seconds of the recording
    image, sound: picture and playable copy, in the visitor's folder
    sample_rate: Hz, of the windows
    notes: what should be known about it, sentences
    label: what the visitor calls it, as an example
    chosen: index of the window that questions are about
    """

    id: str
    name: str
    path: Path
    seconds: float
    slowed: float
    spans: tuple[tuple[float, float], ...]
    image: Path
    sound: Path
    sample_rate: int
    notes: tuple[str, ...] = ()
    label: str = ""
    chosen: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """Names what of it is heard."""
        return self.id, self.chosen

    def samples(self) -> NDArray[np.float32]:
        """The chosen window (samples,), without what only fills it up to its full length."""
        for window in _windows(self.path, self.sample_rate, self.slowed, lambda _: None):
            if window.index == self.chosen:
                if window.note:
                    raise UsageError(f"{self.name}: nothing is asked here. {_SILENCE[window.note]}")
                return _without_padding(window, self.slowed, self.sample_rate)
        raise UsageError(f"{self.name} has changed since it was opened. Open it again.")


@dataclass
class ClipList:
    """A visitor's clips in one place of the page, in the order of their numbers, from 1 on.

    clips: another list after each change, so that who has one may keep it
    most: how many fit in
    too_long: the recording of the last files that was too long for a clip: (path, name)
    """

    folder: Path
    limits: Limits
    most: int
    clips: list[Clip] = field(default_factory=list)
    too_long: tuple[str, str] | None = None
    _gone: list[Clip] = field(default_factory=list)

    def put(
        self,
        files: Iterable[tuple[str | Path, str | None]],
        *,
        add: bool,
        slowed: float = 1.0,
        label: str = "",
        sample_rate: int = 16_000,
    ) -> list[str]:
        """Open (file, name or None) and put them after the clips, or in place of them.

        What was there stays if none of the files can be used. Returns sentences on those that
        cannot.
        """
        problems, new = list[str](), list[Clip]()
        self.too_long = None
        room = self.most - (len(self.clips) if add else 0)
        for file, name in files:
            if len(new) >= room:
                problems.append(
                    f"{self.most} clips fit in here; take one out to put another in."
                    if self.most > 1
                    else "Only the first of the files was taken: one clip fits in here."
                )
                break
            try:
                clip = self.open(file, name, slowed=slowed, sample_rate=sample_rate)
                new.append(replace(clip, label=label))
            except NatureLMError as error:
                problems.append(str(error))
        if new and not add:
            for clip in self.clips:
                self.remove(clip.id)
        self.clips = [*self.clips, *new]
        return problems

    def open(
        self,
        upload: str | Path,
        name: str | None = None,
        *,
        slowed: float = 1.0,
        sample_rate: int = 16_000,
    ) -> Clip:
        """Take a file in, without putting it among the clips. One that is too long is kept.

        Raises UsageError with a sentence for the visitor.
        """
        shown = name or shown_name(upload)
        kept = take(upload, self.folder, self.limits)
        try:
            info = probe(kept, SoundLimits(seconds=self.limits.long_seconds))
            if info.duration <= self.limits.ask_seconds:
                return _open(kept, shown, sample_rate, slowed, info)
        except AudioError as error:
            kept.unlink(missing_ok=True)
            raise UsageError(str(error.renamed(shown))) from error
        self.too_long = str(kept), shown
        raise UsageError(
            f"{shown} lasts {format_duration(info.duration, short=True)}. A clip may last "
            f"{format_duration(self.limits.ask_seconds, short=True)} at most here; Long recording "
            "takes longer ones."
        )

    def remove(self, id: str) -> None:
        """Take one out. Its files go a little later, as the page may be loading them."""
        self._gone += [clip for clip in self.clips if clip.id == id]
        self.clips = [clip for clip in self.clips if clip.id != id]
        while len(self._gone) > _LATE:
            clip = self._gone.pop(0)
            for path in (clip.path, clip.image, clip.sound):
                path.unlink(missing_ok=True)

    def choose(self, id: str, window: int) -> None:
        """Let questions be about this window of the clip."""
        self.clips = [
            replace(clip, chosen=window) if clip.id == id and window < len(clip.spans) else clip
            for clip in self.clips
        ]


def _open(path: Path, name: str, sample_rate: int, slowed: float, info: RecordingInfo) -> Clip:
    """The clip of a file, whose windows are gone through once."""
    import soundfile  # type: ignore[import-untyped, unused-ignore]

    key = secrets.token_urlsafe(12)
    image, sound = path.with_name(f"{key}.png"), path.with_name(f"{key}-heard.wav")
    warnings: list[str] = []
    spans: list[tuple[float, float]] = []
    levels: list[Levels] = []
    per_second = columns_per_second(info.duration * slowed)
    silences: set[str] = set()
    try:
        # 16 bits, which every browser plays.
        with soundfile.SoundFile(sound, "w", sample_rate, 1, "PCM_16", format="WAV") as file:
            for window in _windows(path, sample_rate, slowed, warnings.append):
                samples = _without_padding(window, slowed, sample_rate)
                spans.append((window.start, window.end))
                levels.append(levels_of(samples, sample_rate, per_second))
                silences.add(window.note)
                file.write(samples)
    except AudioError:
        sound.unlink(missing_ok=True)
        raise
    image.write_bytes(picture(np.concatenate(levels, axis=1), *contrast(levels)))
    said = [text.removeprefix(f"{path}: ") for text in warnings]
    notes = tuple(_notes(info.channels, silences, said, sample_rate, slowed))
    end = max(spans[-1][1], 1e-9)
    return Clip(key, name, path, end, slowed, tuple(spans), image, sound, sample_rate, notes)


def _notes(
    channels: int, silences: set[str], warnings: list[str], sample_rate: int, slowed: float
) -> Iterator[str]:
    """silences: notes of all windows; warnings: those of `iter_windows`, without the file's name"""
    if channels > 1:
        yield f"Its {channels} channels are mixed into one."
    if "" not in silences:
        yield _SILENCE[max(silences)]
    for text in warnings:
        if "cannot hear" not in text:
            # What to do about it is said for the command line.
            sentences = [one for one in text.rstrip(".").split(". ") if "--" not in one]
            yield "".join(f"{one[:1].upper()}{one[1:]}. " for one in sentences).strip()
            continue
        remedy = (
            "even slowed down like this" if slowed > 1 else "if these are bats, slow it down below"
        )
        yield (
            f"Most of its sound lies above {sample_rate / 2000:g} kHz, where the model hears "
            f"nothing: {remedy}."
        )


def _windows(path: Path, sample_rate: int, slowed: float, warn: Any) -> Iterator[Window]:
    return iter_windows(
        path,
        sample_rate=sample_rate,
        window_seconds=_WINDOW_SECONDS,
        hop_seconds=_WINDOW_SECONDS,
        time_expansion=slowed,
        warn=warn,
    )


def _without_padding(window: Window, slowed: float, sample_rate: int) -> NDArray[np.float32]:
    return window.samples[: round((window.end - window.start) * slowed * sample_rate)]


def span(start: float, end: float) -> str:
    """A window in words: `0–10 s`."""
    return f"{time_text(start)}–{time_text(end)} s"


def time_text(seconds: float) -> str:
    """Seconds without zeros at the end: `2.5`."""
    return f"{seconds:.2f}".rstrip("0").rstrip(".")


def shown_name(path: str | Path) -> str:
    """The name of a file as people know it: no folders, nothing unprintable, not too long."""
    name = re.split(r"[/\\]", str(path))[-1]
    name = "".join(c if c.isprintable() else "_" for c in name).strip() or "recording"
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 12]}…{name[-11:]}"
    return name


def without_paths(text: str) -> str:
    """A text in which files of this computer have their names alone; for the page."""
    return _PATH.sub(r"\1", text)


def take(upload: str | Path, folder: Path, limits: Limits) -> Path:
    """Keep an uploaded file in a folder under an unguessable name; the path there.

    The visitor's name of it gives no more than a plain suffix. Raises UsageError for a file that is
    too large, and where the disk is full.
    """
    source = Path(upload)
    size = source.stat().st_size
    if size > limits.upload_bytes:
        raise UsageError(
            f"{shown_name(source)} has {format_bytes(size)}, and a file may have "
            f"{format_bytes(limits.upload_bytes)} at most."
        )
    suffix = source.suffix if _SUFFIX.fullmatch(source.suffix) else ""
    kept = folder / f"{secrets.token_urlsafe(12)}{suffix.lower()}"
    check_free(folder, limits)
    folder.mkdir(mode=0o700, exist_ok=True)
    link_or_copy(source, kept)
    return kept


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be. Raises OSError."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def check_free(folder: Path, limits: Limits, needed: int = 0) -> None:
    """Raise UsageError where `needed` bytes more would leave less free than is to stay free.

    folder: on the disk in question; need not be there yet
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free - needed >= limits.free_bytes:
        return
    has, kept = format_bytes(free), format_bytes(limits.free_bytes)
    wanted = f"{format_bytes(needed)} more are needed" if needed else "nothing more is taken"
    logger.warning("%s: the disk has %s free, %s stay free, %s", folder, has, kept, wanted)
    raise UsageError(
        f"The disk of this computer is full: {has} are free, {kept} are to stay free, and "
        f"{wanted}. Remove jobs that are done, or ask whoever runs this page to make room."
    )


def samples_of(folder: Path | None) -> dict[str, Path]:
    """The recordings of a folder by names that people read, in their order; none for no folder."""
    if folder is None:
        return {}
    try:
        found = find_recordings([folder])
    except NatureLMError:
        return {}
    named: dict[str, Path] = {}
    for path in sorted(found):
        name = path.stem.replace("_", " ").replace("synthetic ", "")
        name = f"{name[:1].upper()}{name[1:]}"
        named[name if name not in named else path.name] = path
    return dict(sorted(named.items()))
