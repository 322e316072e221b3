"""The kinds of work that the engine and the baseline both do, and how they are compared.

A work can run the baseline on a part of it, `share`: where the baseline goes one after another over
windows, α or labels, its time is in proportion, and the whole would take minutes that say no more.
Answers of that part are compared with the engine's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import soundfile
import torch
from baseline import BATCH, Baseline
from measure import EncoderClock, Timed, encoder_clock, timed
from model import QUERIES, BenchmarkModel, prompt, waves

from NatureLM.audio.windows import iter_windows
from NatureLM.data.components import components
from NatureLM.generation.engine import Engine, GenerationOptions, Request
from NatureLM.inference.pipeline import Pipeline

Answers = dict[Hashable, Any]
WINDOW, TOKENS = 10.0, 16
_SCORE_TOLERANCE = 1e-3  # nats, of log-likelihoods of tens of nats in float32


class Work(ABC):
    """Something to do with a model, in the straightforward way and by the engine.

    name, title: for programs and for people
    target: how many times as fast the engine is to be
    clips: how many different windows there are to encode
    share: the part of the whole that the baseline does
    """

    name: str
    title: str
    target: float
    clips: int
    share: float = 1.0

    def __init__(self, model: BenchmarkModel, *, own_decoding: bool = True) -> None:
        self.model = model
        self.baseline_way = Baseline(model, self.options, own_decoding)

    @property
    def options(self) -> GenerationOptions:
        """How answers are decoded."""
        return GenerationOptions(max_new_tokens=TOKENS, num_beams=2)

    @abstractmethod
    def baseline(self) -> Answers:
        """The straightforward way, on the part `share`."""

    @abstractmethod
    def engine(self) -> Answers:
        """The engine, on all of it."""

    def agree(self, plain: Any, other: Any) -> bool:
        """Whether two answers are the same."""
        return bool(plain == other)

    def rendered(self, queries: Sequence[str]) -> list[str]:
        """Complete prompts."""
        return [prompt(self.model, query) for query in queries]

    def run(self, way: str) -> tuple[Timed, EncoderClock]:
        """Time one way."""
        with encoder_clock(self.model) as clock:
            return timed(getattr(self, way)), clock


class Folder(Work):
    """Recordings in a folder, cut into windows, with one or more questions about each."""

    def __init__(
        self,
        model: BenchmarkModel,
        folder: Path,
        *,
        name: str,
        target: float,
        recordings: int,
        seconds: float,
        queries: int = 1,
        beams: int = 2,
        baseline_windows: int | None = None,
        **rest: Any,
    ) -> None:
        self.beams = beams
        super().__init__(model, **rest)
        self.name, self.target, self.queries = name, target, QUERIES[:queries]
        self.clips = recordings * round(seconds / WINDOW)
        self.baseline_windows = min(self.clips, baseline_windows or self.clips)
        self.share = self.baseline_windows / self.clips
        questions = f"{queries} question{'s' if queries > 1 else ''}"
        how = "greedy" if beams == 1 else f"{beams} beams"
        self.title = f"{self.clips} windows, {questions}, {how}, {TOKENS} tokens"
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = [folder / f"{number:03d}.wav" for number in range(recordings)]
        for path, wave in zip(self.paths, waves(recordings, seconds), strict=True):
            soundfile.write(path, wave.numpy(), 16_000)

    @property
    def options(self) -> GenerationOptions:
        return GenerationOptions(max_new_tokens=TOKENS, num_beams=self.beams)

    def baseline(self) -> Answers:
        """One window after another, and one question after another."""
        found: Answers = {}
        windows = (
            (path, window)
            for path in self.paths
            for window in iter_windows(path, window_seconds=WINDOW, hop_seconds=WINDOW)
        )
        for path, window in islice(windows, self.baseline_windows):
            wave = torch.from_numpy(window.samples)
            for query, text in zip(self.queries, self.rendered(self.queries), strict=True):
                (answer,) = self.baseline_way.answer([text], [[wave]])
                found[str(path), window.start, query] = answer
        return found

    def engine(self) -> Answers:
        """Through the pipeline, as `naturelm infer` does."""
        results = Pipeline(self.model).windows(
            self.paths,
            [list(self.queries)] * len(self.paths),
            window_length_seconds=WINDOW,
            hop_length_seconds=WINDOW,
            fold=True,
            max_new_tokens=TOKENS,
            num_beams=self.beams,
        )
        return {(one.audio_path, one.start, one.query): one.text for one in results}


class Sweep(Work):
    """Every clip with every question at every α."""

    name = "sweep"
    target = 8.0

    def __init__(
        self,
        model: BenchmarkModel,
        clips: int = 8,
        queries: int = 3,
        alphas: int = 11,
        baseline_alphas: int | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(model, **rest)
        self.clips, self.waves = clips, waves(clips)
        self.prompts = self.rendered(QUERIES[:queries])
        self.alphas = [step / max(1, alphas - 1) for step in range(alphas)]
        self.baseline_alphas = self.alphas[: baseline_alphas or alphas]
        self.share = len(self.baseline_alphas) / alphas
        self.title = f"sweep: {clips} clips x {queries} questions x {alphas} α, 2 beams, 16 tokens"

    def baseline(self) -> Answers:
        """A loop over α, questions and batches of four clips."""
        found: Answers = {}
        for alpha in self.baseline_alphas:
            for query, text in enumerate(self.prompts):
                for first in range(0, self.clips, BATCH):
                    batch = [[wave] for wave in self.waves[first : first + BATCH]]
                    texts = self.baseline_way.answer([text] * len(batch), batch, alpha)
                    for place, answer in enumerate(texts):
                        found[first + place, query, alpha] = answer
        return found

    def requests(self) -> list[Request]:
        """What the engine is asked."""
        return [
            Request((clip, query, alpha), text, (str(clip),), alpha)
            for clip in range(self.clips)
            for query, text in enumerate(self.prompts)
            for alpha in self.alphas
        ]

    def engine(self, **options: Any) -> Answers:
        """Questions and α as rows of batches."""
        engine = Engine(self.model, self.options, eos_ids=self.model.eos_ids, **options)
        answers = engine.run(self.requests(), lambda key: self.waves[int(key)])
        return {answer.key: answer.text for answer in answers}


class Labels(Work):
    """The log-likelihood of every label of a list, for every clip."""

    name = "labels"
    target = 10.0

    def __init__(
        self,
        model: BenchmarkModel,
        clips: int = 8,
        labels: int = 264,
        baseline_labels: int | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(model, **rest)
        self.labels = species_names(labels)
        measured = baseline_labels or labels * clips
        # Labels all over the list, so that short and long ones are drawn alike.
        step = max(1, labels * clips // measured)
        self.pairs = [divmod(place, labels) for place in range(0, labels * clips, step)]
        self.pairs = self.pairs[:measured]
        self.share = len(self.pairs) / (labels * clips)
        self.clips, self.waves = clips, waves(clips)
        self.title = f"{labels} labels on {clips} clips"

    def baseline(self) -> Answers:
        """One full pass for every label."""
        (text,) = self.rendered(QUERIES[:1])
        self.model.ends = True
        try:
            return {
                (clip, label): self.baseline_way.label_score(
                    text, self.waves[clip], self.labels[label]
                )
                for clip, label in self.pairs
            }
        finally:
            self.model.ends = False

    def engine(self) -> Answers:
        """`score_labels` on all clips."""
        (text,) = self.rendered(QUERIES[:1])
        self.model.ends = True
        try:
            scored = self.model.score_labels(
                [text] * self.clips, [[wave] for wave in self.waves], self.labels, alpha=1.0
            )
        finally:
            self.model.ends = False
        return {
            (clip, label): score
            for clip, scores in enumerate(scored)
            for label, score in enumerate(scores.log_likelihoods)
        }

    def agree(self, plain: Any, other: Any) -> bool:
        """Both log-likelihoods are sums in float32."""
        return abs(float(plain) - float(other)) < _SCORE_TOLERANCE


class FewShot(Work):
    """Clips behind one block of labelled examples of two species, which all prompts share."""

    name = "few-shot"
    target = 5.0

    def __init__(
        self,
        model: BenchmarkModel,
        clips: int = 32,
        shots: int = 5,
        baseline_clips: int | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(model, **rest)
        self.shots = [(f"shot {n}", wave) for n, wave in enumerate(waves(2 * shots, seed=2))]
        self.tested = waves(clips)
        self.clips = clips + 2 * shots
        self.baseline_clips = min(clips, baseline_clips or clips)
        self.share = self.baseline_clips / clips
        tag = "<Audio><AudioHere></Audio>"
        names = ["Alder Flycatcher", "Willow Flycatcher"]
        block = "".join(
            f"Audio: {tag}\nLabel: {names[number % 2]}\n\n" for number in range(2 * shots)
        )
        (self.text,) = self.rendered([f"{block}Audio: {tag}\nLabel:"])
        self.title = f"{clips} clips behind {shots} shots of 2 species, 2 beams, {TOKENS} tokens"

    def baseline(self) -> Answers:
        """Batches of four prompts, each with all its clips encoded for it."""
        found: Answers = {}
        shown = [wave for _, wave in self.shots]
        for first in range(0, self.baseline_clips, BATCH):
            batch = self.tested[first : min(first + BATCH, self.baseline_clips)]
            clips = [[*shown, wave] for wave in batch]
            texts = self.baseline_way.answer([self.text] * len(batch), clips)
            found.update({first + place: text for place, text in enumerate(texts)})
        return found

    def engine(self) -> Answers:
        """The block is encoded once, and its keys and values are computed once."""
        sounds = dict(self.shots) | {str(n): wave for n, wave in enumerate(self.tested)}
        shots = tuple(name for name, _ in self.shots)
        requests = [
            Request(number, self.text, (*shots, str(number))) for number in range(len(self.tested))
        ]
        engine = Engine(self.model, self.options, eos_ids=self.model.eos_ids)
        return {answer.key: answer.text for answer in engine.run(requests, sounds.__getitem__)}


def species_names(count: int) -> list[str]:
    """So many labels of the benchmark's largest lists of species."""
    lists = sorted((one.labels or () for one in components().values()), key=len, reverse=True)
    names = list(dict.fromkeys(name for labels in lists for name in labels))
    return names[:count]
