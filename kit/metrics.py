"""Metrics in Prometheus' text format, collected anew for each scrape."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

CONTENT_TYPE: str = exposition.CONTENT_TYPE_LATEST


class Collector(Protocol):
    def collect(self) -> Iterator[Metric]:
        """The metrics as they are at this moment."""


class Registry:
    """Handed to the exposition as its registry: it only asks what it is made of."""

    def __init__(self, *collectors: Collector):
        self._collectors = collectors

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            yield from collector.collect()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return exposition.generate_latest(self)  # type: ignore[arg-type]  # it only calls collect()


def counter(name: str, text: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    """A counter with one label, since the start of the process."""
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """A gauge without labels."""
    return GaugeMetricFamily(name, text, value)
