"""A benchmark in BEANS-Zero's schema from labelled clips: `metadata.jsonl` and recordings.

Which clips it is made of is drawn by a seed, whatever their sound is.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from NatureLM.config.schema import TableSource
from NatureLM.data.sample import Sample, open_samples, read_window
from NatureLM.data.table import DataError
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation.protocols import NO_LABEL
from NatureLM.util import write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray


logger = logging.getLogger(__name__)

TABLE, AUDIO = "metadata.jsonl", "audio"
SAMPLE_RATE = 16000
CAPTION = "The sound of {label}."
MOST_AT_ONCE = 3
"""Labels that may be heard in one window of detection."""

_QUERIES = {
    "classification": "What is the common name for the focal species in the audio?",
    "detection": "Which of these, if any, are present in the audio recording? {labels}.",
    "captioning": "Caption the audio.",
    "in-context": "Which of the examples is it like: A, B, C, D, or None of them?",
}
_LETTERS = "ABCD"
_QUIETEST_DB = -6.0
_LOUDNESS = 0.1  # root mean square of the loudest clip of a mixture
_BACKGROUND = 0.001
_PEAK = 0.99


@dataclass(frozen=True)
class Sizes:
    """How many samples each subset has at most, and of how many labels, the most frequent ones.

    in_context: of clips whose label is a letter, or None, so that only example clips can tell
    """

    classification: int = 60
    detection: int = 40
    captioning: int = 40
    classes: int = 10
    in_context: int = 0


@dataclass
class MiniSummary:
    """What was made: samples of each subset, its labels, and clips that could not be read."""

    labels: tuple[str, ...]
    samples: dict[str, int] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


def make_mini(
    source: TableSource,
    folder: Path,
    sizes: Sizes,
    *,
    seed: int = 0,
    window_seconds: float = 10.0,
    caption: str = CAPTION,
    caption_column: str | None = None,
    overwrite: bool = False,
) -> MiniSummary:
    """Make a benchmark of labelled clips: the same files for the same clips and seed.

    caption: right caption of a clip, with `{label}`; caption_column: a column that holds it instead

    Clips that cannot be read are left out and named in the summary. Raises DataError where the
    clips will not do, and UsageError where the folder holds a benchmark or cannot be written.
    """
    for name, value in vars(sizes).items():
        if value < 0:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is {value}, and it must be at least 0")
    if not 0.1 <= window_seconds <= 600:
        raise UsageError(f"--window-seconds is {window_seconds:g}, and it must be 0.1 to 600")
    if not caption.strip():
        raise UsageError("--caption is empty: give a sentence, such as 'The sound of {label}.'")
    if (folder / TABLE).exists() and not overwrite:
        raise UsageError(
            f"{folder}: holds a benchmark already; give another --output-path, or say --overwrite"
        )
    found = open_samples(source)
    for note in found.notes:
        logger.warning(note)
    samples = _of_one_label(found.samples, source.path)
    labels = _frequent_labels(samples, sizes.classes, source.path)
    taken = [sample for sample in samples if sample.label in labels]
    right = {one.clip.key: one.label for one in taken}
    captions = _captions(source, taken, caption, caption_column)
    maker = _Maker(folder, seed, window_seconds, labels)
    rows: list[dict[str, Any]] = []
    subsets = {
        "classification": maker.single(taken, "classification", right),
        "detection": maker.mixed(taken, sizes.detection),
        "captioning": maker.single(taken, "captioning", captions),
    }
    if sizes.in_context:
        lettered = _lettered(taken, labels)
        some = [sample for sample in taken if sample.clip.key in lettered]
        subsets["in-context"] = maker.single(some, "in-context", lettered)
    for task, made in subsets.items():
        subset = list(islice(made, getattr(sizes, task.replace("-", "_"))))
        maker.summary.samples[f"mini-{task}"] = len(subset)
        rows += subset
    if not rows:
        why = next(iter(maker.summary.unread.values()), "all sizes are 0")
        raise DataError(f"{source.path}: there is nothing to make a benchmark of: {why}")
    write_text(folder / TABLE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return maker.summary


class _Maker:
    """Makes samples one by one and writes their recordings."""

    def __init__(self, folder: Path, seed: int, seconds: float, labels: tuple[str, ...]) -> None:
        self._folder, self._seed = folder, seed
        self._length = round(seconds * SAMPLE_RATE)
        self._seconds = seconds
        self.summary = MiniSummary(labels)

    def single(
        self, samples: Sequence[Sample], task: str, answers: Mapping[str, str]
    ) -> Iterator[dict[str, Any]]:
        """Samples of one clip each; `answers` by the keys of clips."""
        number = 0
        for sample in _in_turn(samples, self._seed, task):
            wav = self._read(sample)
            if wav is not None:
                yield self._row(task, number, wav, answers[sample.clip.key], [sample])
                number += 1

    def mixed(self, samples: Sequence[Sample], count: int) -> Iterator[dict[str, Any]]:
        """Windows in which 0 to 3 labels are heard, at any place and somewhat louder or softer."""
        by_label = _by_label(samples)
        labels = list(by_label)
        for number in range(count):
            noise = np.random.default_rng([self._seed, number]).standard_normal(self._length)
            wav = (_BACKGROUND * noise).astype(np.float32)
            rng = _generator(self._seed, f"mixture/{number}")
            drawn = rng.permutation(len(labels))[: rng.integers(0, MOST_AT_ONCE + 1)]
            heard = []
            for label in sorted(labels[index] for index in drawn):
                sample = by_label[label][rng.integers(len(by_label[label]))]
                place, gain_db = rng.random(), rng.uniform(_QUIETEST_DB, 0.0)
                clip = self._read(sample)
                if clip is not None:
                    start = round(place * (len(wav) - len(clip)))
                    loudness = _LOUDNESS * 10 ** (gain_db / 20)
                    loud = clip * (loudness / np.sqrt(np.mean(clip**2)))
                    wav[start : start + len(clip)] += loud
                    heard.append(sample)
            answer = ", ".join(sorted(sample.label for sample in heard)) or NO_LABEL
            yield self._row("detection", number, wav, answer, heard)

    def _read(self, sample: Sample) -> NDArray[np.float32] | None:
        """The sound of a clip; None, and noted, where there is none."""
        key, unread = sample.clip.key, self.summary.unread
        if key not in unread:
            try:
                wav = read_window(sample.clip, SAMPLE_RATE, self._seconds).samples
                if wav.any():
                    return wav[: self._length]
                unread[key] = f"{sample.id}: nothing is heard in it"
            except (NatureLMError, OSError) as error:
                unread[key] = str(error)
        return None

    def _row(
        self, task: str, number: int, wav: NDArray[np.float32], answer: str, heard: list[Sample]
    ) -> dict[str, Any]:
        name = f"mini-{task}-{number:04}"
        file = f"{AUDIO}/{name}.flac"
        self._write(self._folder / file, wav)
        facts: dict[str, Any] = {"sample_rate": SAMPLE_RATE, "clips": [one.id for one in heard]}
        if len(heard) == 1:
            facts["recording"] = heard[0].cluster
        question = _QUERIES[task].format(labels=", ".join(self.summary.labels))
        return {
            "file_name": file,
            "id": name,
            "source_dataset": heard[0].dataset_name if heard else "",
            "dataset_name": f"mini-{task}",
            "task": "classification" if task == "in-context" else task,
            "output": answer,
            "instruction_text": f"<Audio><AudioHere></Audio> {question}",
            "metadata": json.dumps(facts, ensure_ascii=False),
        }

    def _write(self, path: Path, wav: NDArray[np.float32]) -> None:
        soundfile: Any = import_module("soundfile")
        peak = float(np.abs(wav).max())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            loud = wav * (_PEAK / peak) if peak > _PEAK else wav
            soundfile.write(path, loud, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        except (OSError, RuntimeError) as error:
            raise UsageError(f"{path}: cannot be written ({error})") from None


def _lettered(samples: Sequence[Sample], labels: Sequence[str]) -> dict[str, str]:
    """A letter for clips of the first four labels, and None for those of as many others, by key.

    Raises UsageError where there is no other label.
    """
    if len(labels) <= len(_LETTERS):
        raise UsageError(
            f"--in-context needs clips of at least {len(_LETTERS) + 1} labels, four that are shown "
            f"and one that is not, and there are {len(labels)} ({', '.join(labels)})"
        )
    called = dict(zip(labels[: 2 * len(_LETTERS)], _LETTERS, strict=False))
    others = dict.fromkeys(labels[len(_LETTERS) : 2 * len(_LETTERS)], NO_LABEL)
    called |= others
    return {one.clip.key: called[one.label] for one in samples if one.label in called}


def _of_one_label(samples: Sequence[Sample], name: str) -> list[Sample]:
    """The samples whose clip has no other label: a right answer names all that is heard."""
    labels: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        labels[sample.clip.key].add(sample.label)
    several = sum(len(found) > 1 for found in labels.values())
    if several:
        logger.warning(f"{name}: clips with several labels, which are left out: {several}")
    return [sample for sample in samples if len(labels[sample.clip.key]) == 1]


def _frequent_labels(samples: Sequence[Sample], count: int, name: str) -> tuple[str, ...]:
    """The most frequent labels in alphabetical order; of ties the alphabetically first.

    Raises DataError where there are fewer than two, or a label cannot stand in a list.
    """
    counts = Counter(sample.label for sample in samples)
    chosen = sorted(sorted(counts), key=lambda label: -counts[label])[:count]
    if len(chosen) < 2:
        raise DataError(
            f"{name}: a benchmark needs clips of at least two labels, and there are "
            f"{len(counts)} of which {count} may be taken ({', '.join(chosen)})"
        )
    for label in chosen:
        if "," in label or label == NO_LABEL:
            raise DataError(
                f"{name}: the label {label!r} cannot stand in a list of labels, which are set off "
                "by commas, with None for no label: rename it"
            )
    return tuple(sorted(chosen))


def _in_turn(samples: Sequence[Sample], seed: int, subset: str) -> list[Sample]:
    """All samples in a random order in which the labels take turns."""
    turns: list[tuple[int, int, Sample]] = []
    for place, (label, clips) in enumerate(_by_label(samples).items()):
        order = _generator(seed, f"{subset}/{label}").permutation(len(clips))
        turns += [(turn, place, clips[index]) for turn, index in enumerate(order)]
    return [sample for _, _, sample in sorted(turns, key=lambda one: one[:2])]


def _by_label(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each label, labels in alphabetical order."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.label].append(sample)
    return dict(sorted(found.items()))


def _generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers that depend on seed and name alone."""
    return np.random.default_rng([seed, *name.encode()])


def _captions(
    source: TableSource, samples: Sequence[Sample], caption: str, column: str | None
) -> dict[str, str]:
    """The right caption of each clip, by its key."""
    if column is None:
        return {one.clip.key: caption.replace("{label}", one.label) for one in samples}
    columns = {**source.columns, "label": column}
    described = open_samples(source.model_copy(update={"columns": columns})).samples
    return {one.clip.key: one.label for one in described}
