"""The work of `naturelm infer`: recordings through the model into the result store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from NatureLM.cli.errors import SOME_FAILED, Stopped
from NatureLM.cli.progress import Reporter, Tally
from NatureLM.cli.request import InferRequest, make_request
from NatureLM.outputs import ResultStore, Resumed, RunSettings

__all__ = ["make_request", "run"]


class Asker(Protocol):
    """What is needed of a pipeline."""

    def settings(self) -> dict[str, Any]:
        """What is known once the model is loaded and changes answers: weights, dtype, template."""

    def results(
        self, recordings: Sequence[Path], request: InferRequest, store: ResultStore
    ) -> Iterator[Any]:
        """`WindowResult` or `RecordingError` as they come, windows that have an answer left out."""


def run(request: InferRequest, reporter: Reporter) -> int:
    """Ask all that has no answer yet; the exit code.

    What cannot work is refused before the model is loaded: recordings that are not there, an output
    that cannot be written or holds other answers.
    """
    from NatureLM.audio import find_recordings

    recordings = find_recordings(request.audio_paths, warn=reporter.note)
    with ResultStore(request.output_path, overwrite=request.overwrite) as store:
        store.check(request.settings())
        tally = Tally(recordings=len(recordings))
        try:
            reporter.loading(request)
            asker = load(request, reporter)
            settings = RunSettings({**request.settings(), **asker.settings()})
            resumed = store.begin(settings, recordings)
            _say_what_was_there(resumed, request, reporter)
            tally.expected = _expected_windows(recordings, request) - resumed.answers
            with reporter.working(tally, request):
                _ask(asker.results(recordings, request, store), store, tally, reporter, request)
        except KeyboardInterrupt as interrupt:
            raise Stopped(_goodbye(store, request), interrupt) from None
        reporter.summary(tally, store.answers, request)
    return SOME_FAILED if tally.errors else 0


def load(request: InferRequest, reporter: Reporter) -> Asker:
    """The model, ready to be asked. (Tests put another one here.)"""
    from NatureLM.cli.asking import PipelineAsker

    return PipelineAsker(request, reporter)


def _ask(
    results: Iterable[Any],
    store: ResultStore,
    tally: Tally,
    reporter: Reporter,
    request: InferRequest,
) -> None:
    from NatureLM.runs import keep

    for result in results:
        if not keep(result, store, request.merging_alpha):
            continue
        error = getattr(result, "error", None)
        if error is None:
            tally.count(result)
            reporter.answer(result, tally)
        else:
            tally.errors += 1
            reporter.failed(result.audio_path, error)


def _expected_windows(recordings: Sequence[Path], request: InferRequest) -> int:
    """How many answers there will be, from the headers of the recordings; bad ones count none."""
    from NatureLM.audio import AudioError, count_windows, probe

    total = 0
    for path in recordings:
        try:
            duration = probe(path).duration
        except AudioError:
            continue
        total += count_windows(
            duration,
            request.window_length_seconds,
            request.hop_length_seconds,
            request.time_expansion,
        )
    return total * len(request.queries)


def _say_what_was_there(resumed: Resumed, request: InferRequest, reporter: Reporter) -> None:
    name = request.output_path
    if resumed.cut_off:
        reporter.note(f"{name}: the last line was not whole and has been taken off")
    if resumed.answers:
        reporter.note(f"{name}: has {resumed.answers} answers of this run; going on from there")
    if resumed.retried:
        reporter.note(f"{name}: {resumed.retried} recordings that had failed are tried again")
    for path in resumed.mended:
        reporter.note(f"{path}: has changed since it failed; all of it is asked anew")


def _goodbye(store: ResultStore, request: InferRequest) -> str:
    if not store.answers:
        return "Stopped before the first answer; nothing was written."
    return (
        f"Stopped. {store.answers} answers are in {request.output_path}; "
        "the same command goes on from there."
    )
