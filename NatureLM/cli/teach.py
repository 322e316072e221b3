"""`naturelm teach`: a classifier of a few labelled sounds, on what the audio encoder hears."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from NatureLM.cli import options as of
from NatureLM.cli.search import LAYER, EncoderOptions
from NatureLM.cli.terminal import Failures
from NatureLM.errors import UsageError
from NatureLM.progress import ProgressBar, printable, say, show

if TYPE_CHECKING:
    from NatureLM.search.build import Embedder
    from NatureLM.search.index import IndexSettings, VectorIndex
    from NatureLM.teach.classifier import Classifier
    from NatureLM.teach.examples import Examples
    from NatureLM.teach.labels import Labelled

logger = logging.getLogger(__name__)
_OUTPUT, _EXAMPLES = "Output", "Examples"
_SOME_NAMES = 20


@dataclass(frozen=True)
class TeachRequest(EncoderOptions):
    """The options of `naturelm teach`."""

    ORDER: ClassVar[tuple[Any, ...]] = (
        *("examples", "output_path", "overwrite", "column", "where", "index", "method", "seed"),
        EncoderOptions,
    )
    examples: list[Path] = of.argument(
        ...,
        "Tables of labelled sound (CSV, or of Raven, Audacity, BirdNET, Kaleidoscope ...), and "
        "folders of reviewed clips.",
        "EXAMPLES...",
    )
    output_path: Path = of.option(
        Path("taught"),
        "Folder for the classifier. What one that is there was taught with counts, too.",
        _OUTPUT,
        *("--output-path", "--output", "-o"),
    )
    overwrite: bool = of.option(False, "Forget what is in the folder.", _OUTPUT)
    column: list[str] | None = of.option(
        None,
        "Name of a column, such as label=common_name. May be given several times.",
        _EXAMPLES,
        metavar="OURS=THEIRS",
    )
    where: list[str] | None = of.option(
        None,
        "Only rows with this value, such as split=train. May be given several times.",
        _EXAMPLES,
        metavar="COLUMN=VALUE",
    )
    index: Path | None = of.option(
        None,
        "Index that `naturelm embed` made: examples in it are not heard anew, and its windows and "
        "model are taken.",
        _EXAMPLES,
    )
    method: str = of.option(
        "auto",
        "What tells the names apart; auto takes what is better on held-out recordings.",
        _EXAMPLES,
        metavar="auto|prototypes|logistic",
    )
    seed: int = of.option(
        0, "Another one holds out other recordings.", _EXAMPLES, min=0, max=of.MAX_SEED
    )
    layer: str = of.but(
        LAYER,
        default="peaks",
        help="What of a window counts: its peaks, or a mean, as of `naturelm embed`.",
        metavar="peaks|encoder|projected",
    )


def teach(request: TeachRequest) -> None:
    """Teach a classifier of sounds by a few labelled examples.

    naturelm teach support.csv --output-path mine/

    `naturelm infer recordings/ --classifier mine/` runs it. A second call with reviewed clips adds
    them to what the classifier was taught with.
    """
    from NatureLM.search.index import open_index
    from NatureLM.teach.fit import METHODS, fit_classifier, need_sklearn
    from NatureLM.util import check_place

    check_place(request.output_path, "--output-path", folder=True)
    of.check_choice("--method", request.method, METHODS)
    if request.method == "logistic":
        need_sklearn()
    request.check()
    labelled = _labelled(request)
    index = None if request.index is None else open_index(request.index)
    model = _model(request, index)
    failures = Failures()
    say(f"Model: {model}")
    embedder = _embedder(request, model, index)
    settings = _settings(request, model, embedder, index)
    examples = _heard(labelled, settings, embedder, index, failures)
    classifier, held = fit_classifier(examples, settings, method=request.method, seed=request.seed)
    from NatureLM.teach.card import save
    from NatureLM.util import writing

    with writing(request.output_path):
        made = save(request.output_path, classifier, examples, held, labelled)
    _show(made, request.output_path)
    raise typer.Exit(failures.exit_code)


def _labelled(request: TeachRequest) -> list[Labelled]:
    """What was said of sounds, of all tables. Raises UsageError where that is nothing."""
    from NatureLM.teach.labels import LABELS_NAME, merged, read_labelled

    columns = of.pairs("--column", request.column, "write it as label=common_name")
    where: dict[str, Any] = of.pairs("--where", request.where, "write it as split=train")
    tables = []
    before = request.output_path / LABELS_NAME
    if before.is_file() and not request.overwrite:
        tables.append(read_labelled(before)[0])
        logger.warning(
            "%s: its %d labels count, too; --overwrite forgets them", before, len(tables[0])
        )
    for path in request.examples:
        found, notes = read_labelled(path, columns=columns, where=where)
        for note in notes:
            logger.warning(note)
        tables.append(found)
    labelled = merged(tables)
    if not labelled:
        named = ", ".join(printable(str(path)) for path in request.examples)
        raise UsageError(f"{named}: there is no labelled sound to learn from")
    return labelled


def _model(request: TeachRequest, index: VectorIndex | None) -> str:
    """The model that is named, else that of the index or of the classifier that is there."""
    from NatureLM.teach.classifier import SETTINGS_NAME, read_classifier

    if request.model is not None:
        return request.model
    if index is not None:
        return index.settings.model
    if (request.output_path / SETTINGS_NAME).is_file() and not request.overwrite:
        return read_classifier(request.output_path).hears.model
    return request.name


def _embedder(request: TeachRequest, model: str, index: VectorIndex | None) -> Embedder:
    """What makes vectors. Raises UsageError where those of the index are of another model."""
    from NatureLM.search.index import refuse_other_model

    if index is None:
        return request.checked_embedder(model)
    embedder = request.embedder(model, index.settings.layer)
    refuse_other_model(index, embedder.fingerprint)
    return embedder


def _settings(
    request: TeachRequest, model: str, embedder: Embedder, index: VectorIndex | None
) -> IndexSettings:
    """How examples are cut and heard."""
    if index is not None:
        return replace(index.settings, model=model, unfinished=(), heard=())
    return request.settings(model, embedder.about)


def _heard(
    labelled: Sequence[Labelled],
    settings: IndexSettings,
    embedder: Embedder,
    index: VectorIndex | None,
    failed: Failures,
) -> Examples:
    """The vectors of the examples: of the index, as far as they are in it."""
    from NatureLM.search.index import known_recordings
    from NatureLM.teach.examples import hear_examples, indexed_examples, joined

    parts: list[Examples] = []
    if index is not None:
        known, keys = known_recordings(index)
        known.match([Path(one.recording) for one in labelled], is_noted=False)
        found, rest = indexed_examples(
            labelled, index, lambda file: keys.get(file) or known.key(file)
        )
        say(f"{index.path}: holds {len(labelled) - len(rest)} of {len(labelled)} examples")
        labelled, parts = rest, [found] if len(found) else []
    if labelled:
        with ProgressBar("bar", "{task.completed}/{task.total} examples") as bar:
            parts.append(
                hear_examples(
                    labelled,
                    settings,
                    embedder,
                    failed=failed,
                    done=lambda count, total: bar.update(count, total=total),
                )
            )
    return joined(parts)


def _show(made: Classifier, folder: Path) -> None:
    from NatureLM.teach.card import summary

    rows = []
    measured = made.card["measured"] or {"right_of": {}}
    for name, (clips, recordings) in made.card["examples"].items():
        right, of_how_many = measured["right_of"].get(name, ("-", "-"))
        rows.append([name, str(clips), str(recordings), f"{right} of {of_how_many}"])
    columns = ["name", "examples", "recordings", "right when held out"]
    of.print_table(columns, rows[:_SOME_NAMES], right={*columns[1:]})
    if len(rows) > _SOME_NAMES:
        show(f"and {len(rows) - _SOME_NAMES} more names")
    show(f"Method: {made.method}. {summary(made.card)}")
    show(f"The classifier is in {folder}: naturelm infer recordings/ --classifier {folder}")
