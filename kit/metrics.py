"""Metrics in Prometheus' text format: a registry of the service's own, and what it counts of HTTP."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import disable_created_metrics

CONTENT_TYPE: str = exposition.CONTENT_TYPE_LATEST
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
DURATIONS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds


class Requests:
    """The HTTP requests of an app. A route is its rule and not a path, so there are few of them."""

    def __init__(self) -> None:
        labels = ["route", "method"]
        self.total = Counter("http_requests", "Requests answered", [*labels, "status"], registry=None)
        self.seconds = Histogram(
            "http_request_duration_seconds",
            "Time from a request's head to its answer's head",
            labels,
            registry=None,
            buckets=DURATIONS,
        )
        self.in_progress = 0
        self._children: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def answered(self, route: str, method: str, status: str, seconds: float) -> None:
        """Count a request once its answer begins. A client may send any word as a method."""
        labels = route, method if method in METHODS else "other", status
        if labels not in self._children:  # looking them up costs more than counting
            self._children[labels] = self.total.labels(*labels), self.seconds.labels(*labels[:2])
        total, histogram = self._children[labels]
        total.inc()
        histogram.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        yield from self.total.collect()
        yield from self.seconds.collect()
        yield gauge("http_requests_in_progress", "Requests not answered yet", self.in_progress)


def registry(*collectors: Any) -> CollectorRegistry:
    """A registry of these, which have a method `collect`, and of what the process uses."""
    # Otherwise every counter comes with the time when it was made.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    made = CollectorRegistry()
    for collector in collectors:
        made.register(collector)
    ProcessCollector(registry=made)
    return made


def text(registry: CollectorRegistry) -> bytes:
    """All metrics in Prometheus' text format, as they are now."""
    return exposition.generate_latest(registry)


def counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """A counter with one label, since the start of the process."""
    return filled(CounterMetricFamily(name, text, labels=[label]), values)


def gauge(name: str, text: str, values: float | Mapping[str, float], label: str = "") -> Metric:
    """A gauge without a label, or with one."""
    if isinstance(values, Mapping):
        return filled(GaugeMetricFamily(name, text, labels=[label]), values)
    return GaugeMetricFamily(name, text, values)


def filled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]) -> Metric:
    for label, number in values.items():
        family.add_metric([label], number)
    return family


def info(name: str, text: str, labels: dict[str, str]) -> Metric:
    """A gauge that is always 1; its labels tell what is to be known."""
    family = GaugeMetricFamily(f"{name}_info", text, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family
