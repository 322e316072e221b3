"""The sound of clips for a model: read by key, each in its window."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from NatureLM.beans.samples import Clip, hear
from NatureLM.infer.loading import processor_of

if TYPE_CHECKING:
    from NatureLM.generation.audio import Stretch
    from NatureLM.models import NatureLM


class Ears:
    """Reads clips by key, for the threads of the engine.

    A component whose clips are shorter than the model's window is heard in windows of that length,
    as the reference does; a clip that is longer is cut, and counted.

    Raises UsageError for a model without a processor.
    """

    def __init__(self, model: NatureLM, clips: Iterable[Clip] = ()) -> None:
        processor = processor_of(model)
        self._rate, self._seconds = processor.sample_rate, processor.window_seconds
        self._clips: dict[str, Clip] = {}
        self._cut: set[str] = set()
        self.know(clips)

    @property
    def cut(self) -> int:
        """Clips that were longer than their window."""
        return len(self._cut)

    def know(self, clips: Iterable[Clip]) -> None:
        """Clips that will be asked for."""
        self._clips.update((clip.key, clip) for clip in clips)

    def __call__(self, key: str) -> Stretch:
        """The sound of a clip; raises AudioError."""
        from NatureLM.generation.audio import Stretch

        heard = hear(self._clips[key], self._rate, self._seconds)
        if heard.is_cut:
            self._cut.add(key)
        return Stretch(heard.samples, heard.seconds)
