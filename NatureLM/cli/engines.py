"""What a run is worked off with: this process (`plain`), or Ray Data on many (`--engine ray`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from NatureLM.cli import options as of
from NatureLM.errors import UsageError
from NatureLM.storage import AnyPath

if TYPE_CHECKING:
    from NatureLM.cli.recordings import FieldRecordings
    from NatureLM.distributed.cluster import RayOptions
    from NatureLM.distributed.flow import Todo
    from NatureLM.inference.windows import AskOptions
    from NatureLM.results.parts import PartsStore
    from NatureLM.results.store import WindowStore

ENGINES = ("plain", "ray")
_OF_RAY = ("ray_address", "workers", "gpus", "block_seconds")


class Engine(NamedTuple):
    """What answers: its part of the settings, the model's revisions, and the work itself.

    results: what comes of recordings that the store has no answers of
    unparsed: how many answers could not be parsed, by column
    """

    settings: Mapping[str, Any]
    revisions: Mapping[str, str]
    results: Callable[[Any], Iterator[Any]]
    unparsed: Counter[str]


def ray_options(request: Any) -> RayOptions | None:
    """How Ray Data is to spread the work; None where it is to have no part in it.

    Raises UsageError for values that are not allowed, and where Ray is not installed.
    """
    of.check_choice("--engine", request.engine, ENGINES)
    given = {name: getattr(request, name) for name in _OF_RAY if getattr(request, name) is not None}
    if request.engine == "plain":
        if given:
            name = next(iter(given)).replace("_", "-")
            raise UsageError(f"--{name} is for --engine ray, and the engine is plain")
        return None
    from NatureLM.distributed.cluster import RayOptions, check_ray

    given["address"] = given.pop("ray_address", None)
    made = RayOptions(**given)
    check_ray()
    return made


def answers_of(request: Any, answers: AnyPath) -> AnyPath:
    """Where the answers go: the file itself, or, with Ray, the folder of parts beside it.

    Raises UsageError for parts that are not of this machine.
    """
    from NatureLM.results.parts import SUFFIX

    if request.engine != "ray":
        return answers
    if not isinstance(answers, Path):
        raise UsageError(
            f"--output-path {answers}: with --engine ray the command that gives out the work "
            "writes the answers, on a disk of its own: give a folder there, and copy it at the end"
        )
    return answers.with_suffix(SUFFIX)


def open_store(request: Any, answers: AnyPath) -> WindowStore:
    """What keeps the answers, opened and locked; see `answers_of`."""
    from NatureLM.results import uploads
    from NatureLM.results.parts import PartsStore

    if request.engine == "ray" and isinstance(answers, Path):
        return PartsStore(answers, overwrite=request.overwrite)
    return uploads.open_store(answers, overwrite=request.overwrite)


@contextmanager
def on_ray(
    options: RayOptions,
    device: str,
    make: Callable[[], Any],
    asked: AskOptions,
    field: FieldRecordings,
) -> Iterator[Engine]:
    """Models on a cluster, which are asked what `asked` says about the recordings.

    make: makes a model there
    """
    from NatureLM.distributed.cluster import connected
    from NatureLM.distributed.flow import Job, described

    with connected(options, device) as cluster:
        about = described(cluster, make)
        cutting = {
            "sample_rate": about["sample_rate"],
            "window_seconds": asked.window_length_seconds,
            "hop_seconds": asked.hop_length_seconds,
            "channel": asked.channel,
            "time_expansion": asked.time_expansion,
        }
        job = Job(make, cutting, options.block_seconds)
        unparsed = Counter[str]()

        def results(store: PartsStore) -> Iterator[Any]:
            from NatureLM.distributed.flow import pieces

            todo = _todo(field, asked.queries, store)
            told: set[str] = set()
            for piece in pieces(cluster, job, todo, about):
                for name, now in piece.identities.items():
                    store.know(name, now)
                yield from (one for one in piece.items if not _is_told(one, told))
                for name, windows in piece.ended.items():
                    store.ended(name, windows)
                store.end_part()
                unparsed.update(piece.unparsed)

        yield Engine(about["settings"], about["revisions"], results, unparsed)


def _is_told(item: Any, told: set[str]) -> bool:
    """Whether it is that nothing says when or where a recording was made, and this was said: each
    piece of a recording says it once."""
    from NatureLM.inference.windows import RecordingError

    if not isinstance(item, RecordingError) or item.error.kind != "UnknownContext":
        return False
    is_told = item.audio_path in told
    told.add(item.audio_path)
    return is_told


def _todo(field: FieldRecordings, queries: Sequence[str], store: PartsStore) -> list[Todo]:
    """The recordings that are not answered whole, and what is known of them."""
    from NatureLM.distributed.flow import Todo
    from NatureLM.inference.windows import Recording

    todo = []
    for number, path in enumerate(field.recordings):
        if store.is_whole(path):
            continue
        entry = field.listed.entries.get(path)
        todo.append(
            Todo(
                Recording(number, str(path), path, tuple(queries), field.claims_of(path)),
                done=frozenset(store.answered(path)),
                seconds=None if entry is None else entry.seconds,
                context=field.clock.of(path) if field.needs_context else None,
            )
        )
    return todo
