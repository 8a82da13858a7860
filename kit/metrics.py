"""Metrics in Prometheus' text format, collected anew for each scrape."""

from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol

from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

CONTENT_TYPE: str = exposition.CONTENT_TYPE_LATEST


class Collector(Protocol):
    def collect(self) -> Iterator[Metric]: ...  # the metrics as they are at this moment


def text(*collectors: Collector) -> bytes:
    """All metrics in Prometheus' text format."""

    class Registry:
        def collect(self) -> Iterator[Metric]:
            return chain.from_iterable(collector.collect() for collector in collectors)

    registry: Any = Registry()
    return exposition.generate_latest(registry)


def counter(name: str, text: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    """A counter with one label, since the start of the process."""
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """A gauge without labels."""
    return GaugeMetricFamily(name, text, value)
