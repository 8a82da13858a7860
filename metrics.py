"""What Prometheus reads at /metrics: the ledger's and the listener's counts, and how things are at this moment."""

from collections.abc import Iterator

from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

import models
from ledger import Ledger
from mqtt_listener import Listener

CONTENT_TYPE = exposition.CONTENT_TYPE_LATEST
VERDICTS = ("settled", "late", "duplicate", "contradiction", "unknown")


class Metrics:
    """Handed to the exposition as if it were a registry, so that nothing is counted twice or kept between scrapes."""

    def __init__(self, ledger: Ledger, listener: Listener):
        self._ledger, self._listener = ledger, listener

    def text(self) -> bytes:
        """All of them in Prometheus' text format; raises peewee.DatabaseError if the database does not answer."""
        return exposition.generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        ledger, listener = self._ledger, self._listener
        yield counter("energy2go_transactions", "Transactions that became", "status", self._statuses())
        verdicts = {kind: ledger.counts[kind] for kind in VERDICTS} | {"unreadable": listener.counts["unreadable"]}
        yield counter("energy2go_verdicts", "Messages of the equipment, by what they were worth", "kind", verdicts)
        questions = {"first": ledger.counts["asked"], "again": ledger.counts["asked again"]}
        yield counter("energy2go_questions", "Questions asked, for the first time or again", "time", questions)
        yield from ledger.delays.collect()
        yield from ledger.batches.collect()
        yield gauge("energy2go_queue_jobs", "Jobs that wait for the ledger", ledger.queued)
        yield gauge("energy2go_waiters", "Requests that wait for a verdict", len(ledger.waiters.keys()))
        yield gauge("energy2go_broker_connected", "1 while questions can be asked", int(not listener.trouble))
        online = GaugeMetricFamily("energy2go_equipment_online", "1 while it says so", labels=["equipment"])
        for equipment, status in list(listener.equipment.items()):
            online.add_metric([equipment], int(status == "online"))
        yield online
        oldest = models.oldest_pending()
        age = max(0, ledger.now() - oldest) / models.SECOND if oldest else 0
        yield gauge("energy2go_oldest_pending_seconds", "Age of the oldest PENDING transaction, or 0", age)

    def _statuses(self) -> dict[str, int]:
        return {status.value: self._ledger.counts[status] for status in models.Status}


def counter(name: str, text: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    """A counter with one label, since the start of the process."""
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value)
