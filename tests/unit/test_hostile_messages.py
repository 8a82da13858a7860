"""Thousands of hostile messages to the listener: each is acknowledged and counted once."""

import socket
from collections import Counter
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mqtt_listener
from hostile import FOUR, KINDS, LINE, MB, VERDICTS_OF, judged, messages
from kit.settings import Settings
from mqtt_listener import STATUSES, Listener
from stepped import Bench

AT_ONCE = 80  # messages per example


@pytest.fixture
def bench(tmp_path):
    """A ledger that is called step by step, and a listener without a broker."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # it does not listen
        options = Settings(
            database_url=f"sqlite:///{tmp_path}/energy2go.db", mqtt_port=unused.getsockname()[1]
        )
        bench = Bench(options)
        with Listener(options, bench.ledger.queue.put) as bench.listener:
            yield bench
        bench.close()


def counted(bench) -> Counter:
    """The counters of messages."""
    verdicts = {kind: bench.ledger.counts[kind] for kind in KINDS}
    return Counter(verdicts | {"unreadable": bench.listener.unreadable})


def four(bench) -> list[UUID]:
    """The ids of four new transactions that have the statuses in FOUR."""
    (expired,) = bench.store(1)
    bench.step(61)
    pending, other, completed = bench.store(3)
    bench.answer(completed)
    bench.step()
    return [pending, other, expired, completed]


def test_every_message_is_acknowledged_and_counted_once(bench, caplog, pytestconfig):
    sent = 5_000 if pytestconfig.getoption("--sqlite-only") else 20_000
    settled, received = {}, 0

    @settings(max_examples=sent // AT_ONCE, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(messages, st.integers(0, 19)), min_size=AT_ONCE, max_size=AT_ONCE))
    def receive(batch):
        nonlocal received
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
        received += AT_ONCE

    receive()
    assert received >= sent - AT_ONCE
    assert min(counted(bench)[kind] for kind in (*KINDS, "unreadable")) > sent / 200
    assert set(bench.listener.equipment.values()) == {"online", "offline"}
    assert len(settled) > 2 * received / AT_ONCE
    for transaction in bench.list(10 * MB):
        assert settled.get(transaction.id, transaction.status) is transaction.status
    said = [record.getMessage() for record in caplog.records if record.name == "mqtt_listener"]
    assert len(said) >= bench.listener.unreadable
    assert [line for line in said if not line.isprintable() or len(line) > LINE] == []


def test_no_more_than_100_equipments_are_remembered(bench):
    for number in range(1000):
        bench.listener.receive(f"{STATUSES}{number}", b"online", False, lambda: None)
    for number in range(1000):
        bench.listener.receive(f"{STATUSES}{number}", b"offline", False, lambda: None)
    assert bench.listener.equipment == {str(number): "offline" for number in range(mqtt_listener.EQUIPMENT)}
