"""The clips that a visitor has put into one tab."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from NatureLM.app.clips import Clip, TooLong, open_clip
from NatureLM.app.limits import Limits
from NatureLM.errors import NatureLMError

_LATE = 4
"""Clips that were taken out and whose files are kept for the moment."""


@dataclass
class Taken:
    """How taking files in went: sentences on those that could not be used, and one too long."""

    problems: list[str] = field(default_factory=list)
    too_long: TooLong | None = None


@dataclass
class Shelf:
    """Clips in the order of their numbers, which start at 1. `labels` are by the clip's id."""

    folder: Path
    limits: Limits
    most: int
    clips: list[Clip] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    _gone: list[Clip] = field(default_factory=list)

    def put(
        self,
        files: Iterable[tuple[str | Path, str | None]],
        *,
        add: bool,
        slowed: float = 1.0,
        label: str = "",
        sample_rate: int = 16_000,
    ) -> Taken:
        """Open (file, name or None) and put them after the clips, or in place of them.

        What was there stays if none of the files can be used.
        """
        taken, new = Taken(), list[Clip]()
        room = self.most - (len(self.clips) if add else 0)
        for file, name in files:
            if len(new) >= room:
                taken.problems.append(
                    f"{self.most} clips fit in here; take one out to put another in."
                    if self.most > 1
                    else "Only the first of the files was taken: one clip fits in here."
                )
                break
            try:
                clip = open_clip(
                    file,
                    self.folder,
                    self.limits,
                    slowed=slowed,
                    name=name,
                    sample_rate=sample_rate,
                )
            except TooLong as error:
                taken.too_long = error
                taken.problems.append(str(error))
                continue
            except NatureLMError as error:
                taken.problems.append(str(error))
                continue
            new.append(clip)
            self.labels[clip.id] = label
        if new and not add:
            self.clear()
        self.clips.extend(new)
        return taken

    def remove(self, id: str) -> None:
        """Take one out. Its files go a little later, as the page may be loading them."""
        for clip in [one for one in self.clips if one.id == id]:
            self.clips.remove(clip)
            self.labels.pop(clip.id, None)
            self._gone.append(clip)
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

    def clear(self) -> None:
        """Take all out."""
        for clip in list(self.clips):
            self.remove(clip.id)


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
