"""What a `Pipeline` gives back."""

from __future__ import annotations

from dataclasses import dataclass

from NatureLM.audio import AudioError


@dataclass(frozen=True)
class WindowResult:
    """The answer to one question about one window; times are seconds in the recording.

    confidence: 0 to 1. Of scored labels the probability of the answer among them, of a constrained
        answer the probability that the model says just that, of a free one the mean (geometric) of
        the probabilities of its tokens
    alternatives: other labels and their probabilities, best first, where they were scored
    audio_index: place of the recording among those that were given
    """

    audio_path: str
    start: float
    end: float
    query: str
    prompt: str
    merging_alpha: float
    text: str
    window_index: int
    confidence: float | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    audio_index: int = 0


@dataclass(frozen=True)
class RecordingError:
    """A recording that could not be read (further); the windows before it stand."""

    audio_path: str
    error: AudioError


@dataclass(frozen=True)
class WindowKey:
    """Names a window and a question, so that work already done can be left out."""

    audio_path: str
    start: float
    query: str
