"""The calibration of the embedded model, and how well its confidence serves.

`python -m recipes.tiny.reliability --data-path DATA --docs docs` fits a temperature on the clips of
`valid`, measures on `test` and on species that no training clip has (`unseen`), and writes the
calibration beside the model, and figure and numbers into the pages.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from NatureLM.config.schema import TableSource
from NatureLM.data.sample import Sample, open_samples
from NatureLM.errors import NatureLMError
from NatureLM.evaluation.metrics import Estimate, auroc, clustered_interval
from NatureLM.experiments.tune import Scored, fit_calibration, measure, score_samples
from NatureLM.generation.audio_cache import EmbeddingCache
from NatureLM.generation.labels import NOTHING, Normalize
from NatureLM.inference.calibration import beside_model, write_calibration
from NatureLM.reports.figures import draw_reliability, svg
from recipes import Arguments, program

QUERY = "What is the common name for the focal species in the audio?"
NORMALISATIONS: tuple[Normalize, ...] = ("sum", "mean", "prior")


def measure_model(model: Any, data: Path) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Numbers as plain values, the calibration, and the bins of the figure by name."""
    samples = {split: _samples(data, split) for split in ("train", "valid", "test", "unseen")}
    labels = sorted({one.label for one in samples.pop("train")})
    found: dict[str, Any] = {"query": QUERY, "labels": len(labels), "normalize": {}}
    kept: Any = None
    kept_audio = EmbeddingCache()
    for normalize in NORMALISATIONS:
        scored = {
            split: score_samples(
                model, of, labels, QUERY, normalize=normalize, embeddings=kept_audio
            )
            for split, of in samples.items()
        }
        calibration = fit_calibration(model, scored["valid"], QUERY, normalize=normalize)
        before = measure(scored["test"], 1.0)
        after = measure(scored["test"], calibration.temperature)
        found["normalize"][normalize] = {
            "temperature": calibration.temperature,
            "test_before": before.plain(),
            "test_after": after.plain(),
            "known_or_unseen": known_or_unseen(
                scored["test"], scored["unseen"], calibration.temperature
            ),
        }
        if normalize == "sum":
            kept = calibration, before, after
    calibration, before, after = kept
    error = "calibration error {:.3f}".format
    lines = {
        f"as scored, {error(before.error.value)}": before.bins,
        f"temperature {calibration.temperature:.2f}, {error(after.error.value)}": after.bins,
    }
    return found, calibration, lines


def known_or_unseen(
    known: Sequence[Scored], unseen: Sequence[Scored], temperature: float
) -> dict[str, Any]:
    """Area under the ROC curve of the confidence in the likeliest species, with its interval.

    Clusters of the two splits differ, so each resample has some of both.
    """
    both = [*known, *unseen]
    sure = [one.of_species(temperature) for one in both]
    is_known = [True] * len(known) + [False] * len(unseen)
    clusters = [one.sample.cluster for one in both]
    area = clustered_interval(lambda weights: auroc(sure, is_known, weights), clusters)
    return {
        "auroc": asdict(area),
        "mean_confidence_known": sum(sure[: len(known)]) / len(known),
        "mean_confidence_unseen": sum(sure[len(known) :]) / len(unseen),
        "none_known": sum(one.scores.best == NOTHING for one in known) / len(known),
        "none_unseen": sum(one.scores.best == NOTHING for one in unseen) / len(unseen),
    }


def _samples(data: Path, split: str) -> Sequence[Sample]:
    source = TableSource(path=str(data / "animals"), where={"split": split})
    return open_samples(source).samples


BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PAGE, NUMBERS, FIGURE = (
    "explanation/confidence.md",
    "explanation/tiny-model/reliability.json",
    "images/tiny-reliability.svg",
)


def tables(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    known = found["normalize"]["sum"]["test_after"]["error"]
    rows = [
        f"{found['labels']} species and `None`, {known['samples']} clips of "
        f"{known['clusters']} recordings of the test split.",
        "",
        "| `normalize` | temperature | calibration error as scored | calibrated "
        "| surprise as scored (nats) | calibrated | accuracy | AUROC, known or unseen species |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found["normalize"].items():
        before, after = one["test_before"], one["test_after"]
        cells = [
            f"`{name}`",
            f"{one['temperature']:.2f}",
            *map(_interval, (before["error"], after["error"])),
            *map(_interval, (before["surprise"], after["surprise"])),
            _interval(after["accuracy"]),
            _interval(one["known_or_unseen"]["auroc"]),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    both = found["normalize"]["sum"]["known_or_unseen"]
    rows += [
        "",
        "Mean confidence in the likeliest species (`sum`): "
        f"{both['mean_confidence_known']:.2f} for clips of known species, "
        f"{both['mean_confidence_unseen']:.2f} for clips of species that the model never heard; "
        f"`None` was the answer to {100 * both['none_known']:.0f} % and "
        f"{100 * both['none_unseen']:.0f} % of them.",
    ]
    return "\n".join(rows)


def rewrite(page: Path, found: dict[str, Any]) -> None:
    """Put the numbers between the two marks of the page."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise NatureLMError(f"{page}: lacks {BEGIN} and {END}, between which the numbers go")
    page.write_text(f"{before}{BEGIN}\n\n{tables(found)}\n\n{END}{after}", encoding="utf-8")


def _rounded(value: Any) -> Any:
    """Numbers to what the clips can tell, so that another processor writes the same file."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def _interval(estimate: dict[str, Any]) -> str:
    return str(Estimate(**estimate))


@program
def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.reliability")
    parser.add_argument("--model", default="naturelm-tiny", help="name or folder")
    parser.add_argument("--data-path", type=Path, required=True, help="holds animals/")
    parser.add_argument("--calibration", type=Path, help="by default beside the model")
    parser.add_argument("--docs", type=Path, help="folder of the pages that show the numbers")
    options = parser.parse_args(arguments)

    from NatureLM.models import NatureLM

    target = options.calibration or beside_model(options.model)
    if target is None:
        raise NatureLMError(f"{options.model} is no folder here: give --calibration")
    model = NatureLM.from_pretrained(options.model)
    found, calibration, lines = measure_model(model, options.data_path)
    write_calibration(calibration, target)
    if options.docs is not None:
        figure = draw_reliability(lines, "naturelm-tiny: species of the test split")
        (options.docs / FIGURE).write_text(svg(figure), encoding="utf-8")
        (options.docs / NUMBERS).write_text(json.dumps(_rounded(found), indent=2) + "\n")
        rewrite(options.docs / PAGE, found)
    print(tables(found))


if __name__ == "__main__":
    sys.exit(main())
