"""A Ray cluster to work on: one that runs, or one of this machine alone that ends with the work."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.util import check_range, library

logger = logging.getLogger(__name__)
DECODER_CPUS = 0.5
"""What a task that decodes takes of a core: it waits for the disk as well. It is another share than
a model's, because Ray joins steps that take the same into one, and models would decode then."""
MODEL_CPUS = 1
NO_RAY = "--engine ray needs Ray Data: pip install 'naturelm-audio[ray]'"


@dataclass(frozen=True)
class RayOptions:
    """How work is spread.

    address: of a cluster that runs ("auto": the one of this machine); None for the environment
        variable RAY_ADDRESS, else one of this machine alone
    workers: models that are asked at once; None for one a GPU share, or one a node without GPUs
    gpus: GPUs of each model, such as 1 or 0.5; None for 1 where the cluster has some, else 0
    block_seconds: of sound that a model is given at a time

    Raises UsageError for values that are not allowed.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None
    block_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_range("--workers", self.workers, 1, 100_000)
        check_range("--block-seconds", self.block_seconds, 1, 86_400)
        gpus = self.gpus
        if gpus is not None:
            check_range("--gpus", gpus, 0, 64)
            if gpus > 1 and gpus != int(gpus):
                raise UsageError(f"--gpus is {gpus:g}, and above 1 it must be an integer")


@dataclass(frozen=True)
class Cluster:
    """A cluster that we are connected to.

    ray: the library
    workers, gpus: models that are asked at once, and GPUs of each
    """

    ray: Any
    workers: int
    gpus: float

    @property
    def of_a_model(self) -> dict[str, float]:
        """What each model takes of the cluster."""
        return {"num_cpus": MODEL_CPUS, "num_gpus": self.gpus}


def check_ray() -> None:
    """Raise UsageError where Ray Data is not installed."""
    from importlib.util import find_spec

    for name in ("ray", "pyarrow"):
        if find_spec(name) is None:
            raise UsageError(NO_RAY)


@contextmanager
def connected(options: RayOptions, device: str = "auto") -> Iterator[Cluster]:
    """Connect to a cluster, or start one of this machine; it ends with the block.

    device: where the models are to be

    Nothing is shown, served or sent: no dashboard, no statistics of use. Raises UsageError for a
    cluster that is not there, or has less than what is asked for.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it writes on our stderr
    ray = library("ray", NO_RAY)
    library("ray.data", NO_RAY)
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":  # a share of a core for decoding is there, however many models
        cores = max(os.cpu_count() or 1, (options.workers or 1) + 1)
        quiet |= {"num_cpus": cores, "include_dashboard": False}
    with _own_signals(), _stderr_unseen():
        try:
            ray.init(address=address, namespace="naturelm", **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"--ray-address {address}: there is no Ray cluster that can be used ({why}); start "
                "one with `ray start --head`, or leave the option out"
            ) from None
    try:
        yield _planned(ray, options, device)
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts: put back what the program does then."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _stderr_unseen() -> Iterator[None]:
    """What Ray's own library writes on stderr when it starts is not for the user."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        for one in (kept, nowhere):
            os.close(one)


def _planned(ray: Any, options: RayOptions, device: str) -> Cluster:
    """How many models, and on what. Raises UsageError where the cluster has not that much."""
    there = ray.cluster_resources()
    cpus, cards = float(there.get("CPU", 0)), float(there.get("GPU", 0))
    gpus = options.gpus
    if gpus is None:
        gpus = 1.0 if cards and device in ("auto", "cuda") else 0.0
    if gpus == 0 and device.startswith("cuda"):
        raise UsageError(f"--device {device} needs a GPU, and models have none here: give --gpus 1")
    if gpus > 0 and device in ("cpu", "mps"):
        raise UsageError(f"--gpus {gpus:g} is for --device cuda, and --device is {device}")
    workers = options.workers
    if workers is None:
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        of_a_card = int(1 / gpus) if 0 < gpus < 1 else 0  # no model has parts of two
        workers = max(1, int(cards) * of_a_card or int(cards / gpus) if gpus else nodes)
    if workers * gpus > cards:
        raise UsageError(
            f"{workers} models with {gpus:g} GPUs each need {workers * gpus:g}, and the cluster "
            f"has {cards:g}: give fewer --workers, or a smaller share with --gpus"
        )
    most = int((cpus - DECODER_CPUS) / MODEL_CPUS)
    if workers > most:
        raise UsageError(
            f"--workers {workers} needs {workers * MODEL_CPUS + DECODER_CPUS:g} cores with what "
            f"decodes, and the cluster has {cpus:g}: give --workers {max(most, 1)} or fewer"
        )
    return Cluster(ray, workers, gpus)


def project_error(error: BaseException) -> NatureLMError:
    """What went wrong in a process of the cluster, as an error of the project."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None)  # Ray's own copy of an error says its traceback
        if cause is None and isinstance(seen, NatureLMError):
            return seen
        seen = cause or seen.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    if any("No module named 'NatureLM" in line for line in lines):
        return UsageError(
            "the machines of the Ray cluster lack this version of the program: install the same "
            "naturelm-audio[ray] on all of them"
        )
    return NatureLMError(
        f"work on the Ray cluster ended: {(lines or [type(error).__name__])[-1].strip()}. What is "
        "there is whole; the same command goes on from there."
    )
