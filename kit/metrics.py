"""Metrics in Prometheus' text format: helpers for gauges and counters, and an app's HTTP requests."""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, exposition
from prometheus_client.core import Metric
from prometheus_client.metrics import disable_created_metrics

CONTENT_TYPE: str = exposition.CONTENT_TYPE_LATEST
render = exposition.generate_latest
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
DURATIONS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds


class Requests:
    """An app's HTTP requests, labelled by route and not by path, to keep cardinality low."""

    def __init__(self) -> None:
        labels, text = ["route", "method"], "Time from a request's head to its answer's head"
        self.total = Counter("http_requests", "Requests answered", [*labels, "status"], registry=None)
        name = "http_request_duration_seconds"
        self.seconds = Histogram(name, text, labels, registry=None, buckets=DURATIONS)
        self.in_progress = 0
        self._series = cache(self._new_series)  # prometheus_client is slow to find them

    def _new_series(self, route: str, method: str, status: str) -> tuple[Counter, Histogram]:
        return self.total.labels(route, method, status), self.seconds.labels(route, method)

    def answered(self, route: str, method: str, status: str, seconds: float) -> None:
        """Count a request when its answer begins. A client may send any word as the method."""
        total, histogram = self._series(route, method if method in METHODS else "other", status)
        total.inc()
        histogram.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """The metrics for Prometheus."""
        yield from self.total.collect()
        yield from self.seconds.collect()
        yield gauge("http_requests_in_progress", "Requests not answered yet", self.in_progress)


def registry(*collectors: Any) -> CollectorRegistry:
    """A registry with these collectors, and the process's memory, CPU and descriptors."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter
    made = CollectorRegistry()
    for collector in (*collectors, ProcessCollector(registry=None)):
        made.register(collector)
    return made


def series(kind: str, name: str, text: str, values: float | Mapping[str, float], label: str = "") -> Metric:
    """One value without a label, or one for each label value."""
    metric, ending = Metric(name, text, kind), "_total" if kind == "counter" else ""
    for value, number in values.items() if isinstance(values, Mapping) else [("", values)]:
        metric.add_sample(name + ending, {label: value} if label else {}, number)
    return metric


counter = partial(series, "counter")  # since the process started
gauge = partial(series, "gauge")
