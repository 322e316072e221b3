"""Figures of the service in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from NatureLM.util import library

if TYPE_CHECKING:
    from NatureLM.serve.model import ServedModel

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts requests, and reads the engine's own counts when it is asked."""

    def __init__(self, model: ServedModel) -> None:
        prometheus: Any = library(
            "prometheus_client",
            "naturelm serve needs prometheus_client: pip install 'naturelm-audio[serve]'",
        )
        self._prometheus, self._model = prometheus, model
        self._registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "naturelm_requests", "Requests.", ["route", "status"], registry=self._registry
        )
        self._seconds = prometheus.Histogram(
            "naturelm_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(self)

    def count(self, route: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> tuple[str, str]:
        """All figures, and the content type that they have."""
        text: bytes = self._prometheus.generate_latest(self._registry)
        return text.decode(), str(self._prometheus.CONTENT_TYPE_LATEST)

    def collect(self) -> Iterator[Any]:
        """The engine's counts, as a collector of prometheus_client gives them."""
        core = library("prometheus_client.core", "prometheus_client is not whole")
        for name, what, value in self._model.counts():
            kind = core.CounterMetricFamily if name.endswith("_total") else core.GaugeMetricFamily
            yield kind(f"naturelm_{name.removesuffix('_total')}", what, value=value)
