"""How well sounds of species that the encoder never heard are taught by a few examples.

python -m recipes.tiny.teach_bars --data-path data --output-path bars.json

Tasks are drawn of the `unseen` species of `animals/`: some species, a few labelled clips of each,
and another clip to name. Two rules say what "another" is: of another recording (of another family),
or at least another stretch of ten seconds of the same recording, where a species has only one. What
`naturelm teach` makes of the examples stands beside the nearest example by the same embeddings and
by mel statistics. Beside that: known species of `test` against `unseen` ones, by the chance that a
classifier taught on `train` gives to None.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from NatureLM.evaluation.metrics import auroc, clustered_interval
from NatureLM.search.build import Embedder
from NatureLM.search.index import IndexSettings
from NatureLM.teach.classifier import unit_vectors
from NatureLM.teach.examples import Examples, Labelled, hear_examples
from NatureLM.teach.fit import fit_classifier
from NatureLM.util import write_json
from recipes import Arguments, program

BARS = {(2, 1): 0.86, (2, 3): 0.90, (5, 3): 0.75}
"""Ways and examples, and the accuracy that is aimed at."""
RULES = ("other recording", "other clip")
KNOWN_BAR = 0.80

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Task:
    """Rows of examples with the number of their species, and the row to name.

    answer: number of its species
    """

    examples: NDArray[np.int64]
    classes: NDArray[np.int64]
    query: int
    answer: int


Namer: TypeAlias = Callable[[Task], int]


def draw(
    species: Sequence[str], sides: Sequence[str], ways: int, shots: int, count: int, seed: int = 0
) -> Iterator[Task]:
    """Tasks whose query shares no side with an example of its species.

    sides: of each clip what must not be on both sides
    shots: of a species that has fewer clips on other sides, as many as it has
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, (name, side) in enumerate(zip(species, sides, strict=True)):
        rows[name][side].append(row)
    usable = sorted(name for name, by_side in rows.items() if len(by_side) > 1)
    for _ in range(count if len(usable) >= ways else 0):
        chosen = [usable[place] for place in rng.choice(len(usable), ways, replace=False)]
        answer, query = int(rng.integers(ways)), 0
        examples: list[int] = []
        classes: list[int] = []
        for number, name in enumerate(chosen):
            sides_here = sorted(rows[name])
            left_out = sides_here[int(rng.integers(len(sides_here)))]
            pool = [row for side in sides_here if side != left_out for row in rows[name][side]]
            taken = rng.permutation(pool)[:shots]
            examples += taken.tolist()
            classes += [number] * len(taken)
            if number == answer:
                query = int(rng.choice(rows[name][left_out]))
        yield Task(np.array(examples), np.array(classes), query, answer)


def nearest(vectors: Floats) -> Namer:
    """Names by the example whose vector has the highest cosine."""
    unit = unit_vectors(vectors)

    def name(task: Task) -> int:
        return int(task.classes[(unit[task.examples] @ unit[task.query]).argmax()])

    return name


def taught(examples: Examples, settings: IndexSettings) -> Namer:
    """Names by a classifier that is taught with the examples of the task."""

    def name(task: Task) -> int:
        labels = tuple(f"{number:03d}" for number in task.classes)
        few = replace(examples.taken(task.examples), labels=labels)
        classifier, _ = fit_classifier(few, settings)
        vectors = examples.vectors[task.query : task.query + 1]
        return int(classifier.classify(vectors).chances[0, :-1].argmax())

    return name


def mel_statistics(model: Any, labelled: Sequence[Labelled]) -> Floats:
    """Mean and deviation of the log mel bands of each clip: what no model was trained for."""
    import torch

    from NatureLM.audio.windows import read_noted_clip

    made = []
    for one in labelled:
        rate = model.config.sample_rate
        samples, _ = read_noted_clip(one.recording, sample_rate=rate, duration=10)
        with torch.inference_mode():
            fbank = model._fbanks(torch.from_numpy(samples)[None], [0])[0][0].float().numpy()
        made.append(np.concatenate([fbank.mean(axis=0), fbank.std(axis=0)]))
    return np.stack(made)


def measured(
    namers: Mapping[str, Namer],
    species: Sequence[str],
    sides: Sequence[str],
    ways: int,
    shots: int,
    count: int,
) -> dict[str, Any] | None:
    """Accuracies with 95 % intervals; None where there are too few species."""
    tasks = list(draw(species, sides, ways, shots, count))
    if not tasks:
        return None
    out: dict[str, Any] = {
        "tasks": len(tasks),
        "species": len({species[one.query] for one in tasks}),
        "examples_of_each": round(float(np.mean([len(one.examples) for one in tasks])) / ways, 2),
    }
    for name, namer in namers.items():
        right = np.array([namer(one) == one.answer for one in tasks], float)
        out[name] = _with_interval(right, range(len(tasks)))
        # Tasks about one species are right or wrong together, so this interval is wider.
        out[f"{name}, by species"] = _with_interval(right, [species[one.query] for one in tasks])
    return out


def _with_interval(right: Floats, groups: Sequence[Any]) -> list[float]:
    def mean(weights: Floats) -> float:
        return float(np.average(right, weights=weights))

    found = clustered_interval(mean, list(groups), repeats=1000)
    return [round(one, 3) for one in (found.value, found.low, found.high)]


def unknown_species(
    train: Examples, known: Examples, unknown: Examples, settings: IndexSettings
) -> dict[str, Any]:
    """How well None tells species that were never taught from those that were."""
    classifier, _ = fit_classifier(train, settings)
    chances = [classifier.classify(one.vectors).chances for one in (known, unknown)]
    sure = np.concatenate([1 - one[:, -1] for one in chances])
    is_known = np.arange(len(sure)) < len(chances[0])
    groups = (*known.recordings, *unknown.recordings)

    def area(weights: Floats) -> float:
        return auroc(sure, is_known, weights.astype(np.float64))

    found = clustered_interval(area, list(groups), repeats=500)
    names = np.array(classifier.names)
    right = names[chances[0][:, :-1].argmax(axis=1)] == np.array(known.labels)
    return {
        "auroc": [round(one, 3) for one in (found.value, found.low, found.high)],
        "known_clips": len(known),
        "unknown_clips": len(unknown),
        "known_named_right": round(float(right.mean()), 3),
        "method": classifier.method,
        "bar": KNOWN_BAR,
    }


def read(folder: Path, split: str) -> list[Labelled]:
    """The clips of a split of `animals/`."""
    with open(folder / "animals" / "metadata.csv", encoding="utf-8", newline="") as file:
        return [
            Labelled(
                recording=str(folder / "animals" / row["file"]),
                label=row["common_name"],
                group=row["family"],
            )
            for row in csv.DictReader(file)
            if row["split"] == split
        ]


def measure(folder: Path, model: Any, split: str, count: int, known: bool) -> dict[str, Any]:
    """All numbers of a model."""
    embedder = Embedder(model, "peaks")
    settings = IndexSettings(
        model=str(model.name_or_path), **embedder.about, window_seconds=10.0, hop_seconds=10.0
    )

    def hear(labelled: Sequence[Labelled]) -> Examples:
        return hear_examples(labelled, settings, embedder, failed=_refuse)

    labelled = read(folder, split)
    heard = hear(labelled)
    namers = {
        "taught": taught(heard, settings),
        "nearest by embeddings": nearest(heard.vectors),
        "nearest by mel statistics": nearest(mel_statistics(model, labelled)),
    }
    out: dict[str, Any] = {"split": split, "encoder": embedder.fingerprint, "tasks": {}}
    clips = [one.recording for one in labelled]
    for rule, sides in zip(RULES, (heard.recordings, clips), strict=True):
        for (ways, shots), bar in BARS.items():
            found = measured(namers, heard.labels, sides, ways, shots, count)
            key = f"{ways} ways, {shots} example{'s' * (shots > 1)}, {rule}"
            out["tasks"][key] = found and {**found, "bar": bar}
    if known:
        parts = [hear(read(folder, name)) for name in ("train", "test")]
        out["unknown_species"] = unknown_species(parts[0], parts[1], heard, settings)
    return out


def _refuse(error: Exception) -> None:
    raise error


def table(measured: Mapping[str, Any]) -> str:
    """The numbers as a table of Markdown."""
    names = ("taught", "nearest by embeddings", "nearest by mel statistics")
    lines = [
        f"| task | aim | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for key, found in measured["tasks"].items():
        if found is None:
            lines.append(f"| {key} | | too few species |" + " |" * (len(names) - 1))
            continue
        cells = [
            "{:.3f} [{:.3f}, {:.3f}]".format(*found[name])  # of 500 tasks
            for name in names
        ]
        lines.append(f"| {key} | {found['bar']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


@program
def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.tiny.teach_bars", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data-path", type=Path, required=True, help="holds animals/")
    parser.add_argument("--output-path", type=Path, help="JSON with all numbers")
    parser.add_argument("--model", default="naturelm-tiny")
    parser.add_argument("--split", default="unseen", help="of which species tasks are drawn")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--no-known", action="store_true", help="leave out known against unknown")
    options = parser.parse_args(arguments)
    from NatureLM.inference.loading import load_model

    model = load_model(options.model, audio_only=True)
    found = measure(options.data_path, model, options.split, options.tasks, not options.no_known)
    found["model"] = options.model
    print(table(found))
    if "unknown_species" in found:
        print("\nknown against unknown: {}".format(found["unknown_species"]))
    if options.output_path is not None:
        write_json(options.output_path, found)


if __name__ == "__main__":
    sys.exit(main())
