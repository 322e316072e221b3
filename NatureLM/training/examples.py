"""A row of training data, before anything is drawn, decoded or changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

NONE_LABEL = "None"


@dataclass(frozen=True)
class Clip:
    """A stretch of an audio file, in seconds; `end` None is the end of the file."""

    path: str
    start: float = 0.0
    end: float | None = None

    @property
    def duration(self) -> float | None:
        """Seconds, None when only the file knows."""
        return None if self.end is None else self.end - self.start


@dataclass(frozen=True)
class Example:
    """One row.

    id: names the row in reports and seeds its draws; unique within the data
    clips: audio in the order of the prompt's placeholders; empty for text only
    prompts: questions of which one is drawn (complete texts once `rendered`)
    answer: the text to be given
    labels: the answer as a list, for mixing and for the encoder task; empty if it is no list
    group: rows of one recording; few-shot examples never come from the query's group
    weight: how often it is drawn, relative to the rows of its dataset
    """

    id: str
    clips: tuple[Clip, ...] = ()
    prompts: tuple[str, ...] = ("",)
    answer: str = ""
    labels: tuple[str, ...] = ()
    task: str = ""
    dataset: str = ""
    group: str = ""
    weight: float = 1.0
    rendered: bool = False

    def with_prompt(self, prompt: str, *, rendered: bool = False) -> Example:
        """The same row with one prompt."""
        return replace(self, prompts=(prompt,), rendered=rendered)


def split_labels(answer: str) -> tuple[str, ...]:
    """The labels of a list answer such as "Frog, Rain"; `None` is the empty list's name."""
    return tuple(part.strip() for part in answer.split(",") if part.strip())


def merge_labels(*groups: tuple[str, ...]) -> tuple[str, ...]:
    """All labels once, sorted; `None` only when there is nothing else."""
    merged = sorted({label for labels in groups for label in labels} - {NONE_LABEL})
    return tuple(merged) if merged else (NONE_LABEL,)
