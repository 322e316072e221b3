"""Teach by example with a classifier: what it says of a clip, beside the language model's answer,
and the job that asks it about a folder."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.app.chat import LabelRanking
from NatureLM.app.clips import Clip, span
from NatureLM.app.ui import sound_address
from NatureLM.audio.windows import Window
from NatureLM.errors import UsageError
from NatureLM.search.build import Embedder
from NatureLM.search.index import IndexSettings
from NatureLM.teach.ask import ask_options
from NatureLM.teach.classifier import Classifier, ranked, read_classifier
from NatureLM.teach.examples import Examples, Place
from NatureLM.teach.fit import fit_classifier
from NatureLM.teach.labels import named

if TYPE_CHECKING:
    from NatureLM.app.jobs import Job, Jobs

_NEAREST = 3


@dataclass(frozen=True)
class TaughtAnswer:
    """What a classifier of some clips says of another one.

    ranking: its names and None, best first
    nearest: the examples that are most like the clip, with their cosines
    """

    classifier: Classifier
    examples: Examples
    ranking: LabelRanking
    nearest: tuple[tuple[Clip, float], ...]


def teach_clips(
    model: Any, name: str, examples: Sequence[Clip], labels: Sequence[str], new: Clip
) -> TaughtAnswer:
    """Teach a classifier by clips and ask it about a new one; of each the chosen window counts.

    name: of the model

    Raises UsageError where a clip holds no sound.
    """
    embedder = Embedder(model, "peaks")
    clips = [*examples, new]
    slowed = {clip.slowed for clip in clips}
    if len(slowed) > 1:
        raise UsageError(
            "Some clips are slowed down and some are not: give all of them at the same speed."
        )
    settings = IndexSettings(
        model=name,
        **embedder.about,
        window_seconds=model.config.window_seconds,
        hop_seconds=model.config.window_seconds,
        time_expansion=new.slowed,
    )
    vectors = embedder.vectors([_window(clip) for clip in clips])
    taught = Examples(
        vectors[:-1],
        tuple(map(named, labels)),
        ("",) * len(examples),
        tuple(range(len(examples))),
        tuple(clip.name for clip in examples),
        tuple(Place(clip.name, *clip.spans[clip.chosen]) for clip in examples),
    )
    classifier, _ = fit_classifier(taught, settings)
    said = classifier.classify(vectors[-1:])
    similar = classifier.examples @ vectors[-1] / max(float((vectors[-1] ** 2).sum() ** 0.5), 1e-9)
    order = similar.argsort()[::-1][:_NEAREST]
    return TaughtAnswer(
        classifier,
        taught,
        LabelRanking(*new.spans[new.chosen], tuple(ranked(said.chances[0], classifier.labels))),
        tuple((examples[place], float(similar[place])) for place in order),
    )


def _window(clip: Clip) -> Window:
    samples = clip.samples()
    return Window(0, 0.0, len(samples) / clip.sample_rate, samples)


def nearest_html(answer: TaughtAnswer) -> str:
    """The examples that are most like the clip, to listen to."""
    items = "".join(
        f'<li data-clip="{clip.id}"><span class="tag">{escape(clip.label)}</span> '
        f'<span class="name">{escape(clip.name)}, {span(*clip.spans[clip.chosen])}</span> '
        f'<span class="share">likeness {similarity:.2f}</span>'
        f'<audio controls preload="none" src="{sound_address(clip)}" '
        f'aria-label="Example {escape(clip.label)}, {escape(clip.name)}"></audio></li>'
        for clip, similarity in answer.nearest
    )
    return f'<h4>Nearest examples</h4><ol class="nearest">{items}</ol>'


def keep(answer: TaughtAnswer, folder: Path) -> Path:
    """Write the classifier into a visitor's folder; its place."""
    from NatureLM.teach.card import save

    place = folder / f"taught-{secrets.token_urlsafe(8)}"
    save(place, answer.classifier, answer.examples, None, [])
    return place


def begin_job(jobs: Jobs, files: Sequence[tuple[Path, str]], classifier: Path) -> Job:
    """A job that asks a classifier about recordings. Raises UsageError."""
    if not files:
        raise UsageError("There are no recordings yet: drop a folder, or choose files.")
    jobs.refuse_if_full()
    settings = ask_options(read_classifier(classifier), top_k=3)
    job = jobs.create("folder", files, settings, classifier=classifier)
    jobs.submit(job.id)
    return job
