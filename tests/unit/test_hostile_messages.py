"""Thousands of hostile messages to the listener: each is acknowledged and counted once."""

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mqtt_listener
from hostile import FOUR, KINDS, LINE, MB, VERDICTS_OF, judged, messages
from kit.settings import Settings
from mqtt_listener import STATUSES, VERDICTS, Listener
from trial import FULL

AT_ONCE = 80  # messages per example
VERDICT = b'{"transaction_id": "%s", "status": "ERROR"}' % str(UUID(int=7)).encode()


@pytest.fixture
def bench(bench):
    """A ledger that is called step by step, and a listener that is not connected."""
    bench.listener = Listener(Settings(), bench.ledger.queue.put, bench.clock)
    return bench


def counted(bench) -> Counter:
    """The counters of messages."""
    verdicts = {kind: bench.ledger.counts[kind] for kind in KINDS}
    return Counter(verdicts | {"unreadable": bench.listener.unreadable})


def four(bench) -> list[UUID]:
    """The ids of four new transactions that have the statuses in FOUR."""
    (expired,) = bench.create()
    bench.step(61)
    pending, other, completed = bench.create(3)
    bench.answer(completed)
    bench.step()
    return [pending, other, expired, completed]


def test_every_message_is_acknowledged_and_counted_once(bench, caplog):
    sent = 20_000 if FULL else 2_400
    settled = {}

    @settings(max_examples=sent // AT_ONCE, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(messages, st.integers(0, 19)), min_size=AT_ONCE, max_size=AT_ONCE))
    def receive(batch):
        keys, before, acknowledged = four(bench), counted(bench), []
        for number, (message, commit) in enumerate(batch):
            payload, acknowledge = message.payload(keys), lambda number=number: acknowledged.append(number)
            bench.listener.receive(message.topic, payload, message.retained, acknowledge)
            if commit == 0:
                bench.step()
        bench.step()
        assert sorted(acknowledged) == list(range(AT_ONCE))
        stored, counts = judged([message for message, _ in batch], FOUR)
        assert counted(bench) - before == Counter({kind: counts[kind] for kind in (*KINDS, "unreadable")})
        assert [bench.status(key) for key in keys] == stored
        assert len(bench.listener.equipment) <= mqtt_listener.EQUIPMENT
        settled.update(
            {key: status for key, status in zip(keys, stored, strict=True) if status in VERDICTS_OF}
        )

    receive()
    assert min(counted(bench)[kind] for kind in (*KINDS, "unreadable")) > sent / 200
    assert set(bench.listener.equipment.values()) == {"online", "offline"}
    assert len(settled) > 2 * sent / AT_ONCE
    for transaction in bench.list(10 * MB):
        assert settled.get(transaction.id, transaction.status) is transaction.status
    said = [record.getMessage() for record in caplog.records if record.name == "mqtt_listener"]
    assert len(said) >= bench.listener.unreadable
    assert [line for line in said if not line.isprintable() or len(line) > LINE] == []


def test_past_100_equipments_the_oldest_offline_one_is_forgotten(bench):
    def hear(name, status, retained=True):
        bench.listener.receive(f"{STATUSES}{name}", status, retained, lambda: None)

    for number in range(1000):
        hear(number, b"offline")
    hear("new", b"online")
    kept = {str(number): "offline" for number in range(1000)[1 - mqtt_listener.EQUIPMENT :]}
    assert bench.listener.equipment == kept | {"new": "online"}
    hear("999", b"", retained=False)  # so the broker forgets it (MQTT 5, section 3.3.1.3)
    assert bench.listener.equipment == {name: kept[name] for name in kept if name != "999"} | {
        "new": "online"
    }
    for number in range(1000):
        hear(number, b"online")
    assert len(bench.listener.equipment) == mqtt_listener.EQUIPMENT
    assert set(bench.listener.equipment.values()) == {"online"}  # none of these makes room for another
    assert "new" in bench.listener.equipment


def test_a_verdict_after_the_newest_offline_proves_that_equipment_works(bench):
    def hear(topic, payload, retained=False):
        bench.listener.receive(topic, payload, retained, lambda: None)
        return bench.listener.served

    assert not hear(f"{STATUSES}one", b"offline", retained=True)
    assert not hear(VERDICTS, b"garbage")
    assert hear(VERDICTS, VERDICT)
    assert hear(f"{STATUSES}two", b"offline", retained=True)  # from before we subscribed
    assert not hear(f"{STATUSES}two", b"offline")
    assert hear(VERDICTS, VERDICT)
    assert hear(f"{STATUSES}two", b"online")
    assert not hear(f"{STATUSES}two", b"offline")


def test_each_verdict_and_one_online_at_a_time_become_jobs(bench, monkeypatch):
    """Verdicts are limited by our Receive Maximum, `online` by whether the last one waits."""
    monkeypatch.setattr("ledger.QUEUE", 0)  # the limit of requests, which does not count
    acknowledged = []
    for _ in range(3):
        bench.listener.receive(VERDICTS, VERDICT, False, lambda: acknowledged.append(1))
        bench.listener.receive(f"{STATUSES}one", b"online", False, lambda: None)
    assert bench.ledger.queue.qsize() == 3 + 1
    bench.step()
    assert len(acknowledged) == 3
    bench.listener.receive(f"{STATUSES}one", b"online", False, lambda: None)
    assert bench.ledger.queue.qsize() == 1
