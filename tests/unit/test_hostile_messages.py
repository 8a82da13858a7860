"""Thousands of hostile messages to the listener: each is acknowledged and counted once."""

from collections import Counter
from functools import partial
from random import Random
from typing import NamedTuple
from uuid import UUID

import pytest

import mqtt_listener
from kit.settings import Settings
from mqtt_listener import NAME, STATUSES, VERDICTS, Listener
from schemas import Status
from trial import FULL

AT_ONCE, ROUNDS = 80, 250 if FULL else 30
KINDS = "settled", "late", "duplicate", "contradiction", "unknown"  # verdicts, as the ledger counts them
LONG, LINE = 100_000, 500  # bytes; characters of a log line
DEEP = b"[" * LONG + b"]" * LONG
FOUR = [Status.PENDING, Status.PENDING, Status.EXPIRED, Status.COMPLETED]
OTHER = {Status.COMPLETED: b"ERROR", Status.ERROR: b"COMPLETED"}  # the other verdict
VERDICT = b'{"transaction_id": "%s", "status": "ERROR"}' % str(UUID(int=7)).encode()
READABLE = [
    b'{"transaction_id": "{key}", "status": "{status}"}',
    b'\t\r\n{"status":"{status}","transaction_id":"{KEY}"} \n',
    b'{"transaction_id": "{hex}", "status": "{status}", "more": [null, {"status": "PENDING"}]}',
    b'{"\\u0073tatus": "{status}", "transaction_id": "{key}"}',
    b'{"status": "{other}", "transaction_id": "{none}", "transaction_id": "{key}", "status": "{status}"}',
    b'{"transaction_id": "{key}", "status": "{status}", "more": %s, "even more": 1e999}' % (b"9" * 5000),
    b'{"transaction_id": "{key}", "status": "{status}", "reason": {"]": %s}}' % DEEP,
    b'{"transaction_id": "{key}", "status": "{status}", "a": "\\ud800", "b": %s}' % DEEP,
    b'{"transaction_id": "{key}", "status": "{status}", "a": %s, "b": "\\ud800"}' % DEEP,
    b'{"transaction_id": "{key}", "status": "{status}", "more": "\\ud800", "reason": %s}' % (b"9" * 5000),
]
NO_STATUS = r"""
    null true 1.5 1e999 NaN [] {} ["COMPLETED"] "" "PENDING" "EXPIRED" "completed" "COMPLETED\u0000"
    "COMPLETED\n" "\ud800" COMPLETED 'ERROR' "\n2026-01-01\u001b[2J\u0085\u2028\r" "\u202eERROR"
"""
NO_ID = r"""
    null true 0 1e999 [] {} ["{key}"] "" "{{key}}" "urn:uuid:{key}" "{key}0" "{key}\u0000" "\ud800"
    "019d31b4" "------------------------------------" {key}
"""
UNREADABLE = [
    *(b'{"transaction_id": "{key}", "status": %s}' % status.encode() for status in NO_STATUS.split()),
    *(b'{"transaction_id": %s, "status": "COMPLETED"}' % key.encode() for key in NO_ID.split()),
    *(b'{"transaction_id": "{key}"}', b'{"status": "COMPLETED"}', b'["{key}", "COMPLETED"]', b"\0", b"{}"),
    b'{"transaction_id": "{key}", "status": "COMPLETED", "status": "EXPIRED"}',
    b'{"transaction_id": "{key}", "status": "COMPLETED", "more": NaN}',
    b'{"transaction_id": "{key}", "status": "COMPLETED", "more": %s}' % (b"[" * LONG),
    *(READABLE[0] + more for more in (b"{}", b"\0", b"x" * LONG)),
    *(b"\xef\xbb\xbf" + READABLE[0], b"[%s]" % READABLE[0], READABLE[0].decode().encode("utf-16")),
    *(b"[" * LONG, b'{"transaction_id":' * LONG, b"\xff" * LONG, b" " * LONG, b"9" * LONG),
]
NAMES = "validator-1", "validator-2", " ", "$SYS", "%00", "\n\x1b[2J", "\u2028", "a" * NAME
NO_NAMES = "", "é" * 30_000, "🔋" * (NAME + 1)
SAID = b"online", b"offline", b""
NOT_SAID = b"Online", b"online ", b"online\n", b"online\0", b'"online"', "ónline".encode()


class Message(NamedTuple):
    """A message on `topic`. In `template`, {key} stands for the id of transaction number `who`, or of none.

    `means` is the verdict in it, or a word for another kind of message.
    """

    topic: str
    template: bytes
    who: int | None
    means: Status | str
    retained: bool = False

    def payload(self, keys: list[UUID]) -> bytes:
        key, payload = UUID(int=0) if self.who is None else keys[self.who], self.template
        words = {"{key}": str(key), "{KEY}": str(key).upper(), "{hex}": key.hex, "{none}": str(UUID(int=7))}
        for word, text in words.items():
            payload = payload.replace(word.encode(), text.encode())
        return payload


def drawn(chance: Random) -> Message:
    """A message of any kind."""
    who, status = chance.choice([None, 0, 1, 2, 3]), chance.choice([*OTHER])
    template = chance.choice(READABLE[:4] * 4 + READABLE[4:])
    template = template.replace(b"{status}", status.encode()).replace(b"{other}", OTHER[status])
    cut = template.strip()[: -chance.randint(1, 50)] or b"{"
    garbage = chance.choice([*UNREADABLE, *[cut] * 5, chance.randbytes(60)])
    known, strange, retained = chance.choice(NAMES), chance.choice(NO_NAMES), chance.random() < 0.5
    return chance.choice(
        [
            Message(VERDICTS, template, who, status),
            Message(VERDICTS, garbage, who, "unreadable"),
            Message(STATUSES + known, chance.choice(SAID), None, "status", retained),
            Message(STATUSES + known, chance.choice([*NOT_SAID, garbage]), None, "unreadable", retained),
            Message(STATUSES + strange, chance.choice(SAID), None, "unreadable", retained),
        ]
    )


def judged(batch: list[Message], stored: list[Status]) -> tuple[list[Status], Counter]:
    """The four statuses after these messages, and the counters."""
    stored, counts = list(stored), Counter()
    for message in batch:
        if not isinstance(message.means, Status):
            counts[message.means] += 1
        elif message.who is None:
            counts["unknown"] += 1
        elif stored[message.who] in (Status.PENDING, Status.EXPIRED):
            counts["settled" if stored[message.who] is Status.PENDING else "late"] += 1
            stored[message.who] = message.means
        else:
            counts["duplicate" if stored[message.who] is message.means else "contradiction"] += 1
    return stored, counts


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
    chance, settled = Random(7), {}  # the same messages in every run
    for _ in range(ROUNDS):
        batch = [drawn(chance) for _ in range(AT_ONCE)]
        keys, before, acknowledged = four(bench), counted(bench), []
        for number, message in enumerate(batch):
            done = partial(acknowledged.append, number)
            bench.listener.receive(message.topic, message.payload(keys), message.retained, done)
            if chance.random() < 0.05:
                bench.step()
        bench.step()
        assert sorted(acknowledged) == list(range(AT_ONCE))
        stored, counts = judged(batch, FOUR)
        found = counted(bench) - before
        assert found == Counter({kind: counts[kind] for kind in (*KINDS, "unreadable")}), batch
        assert [bench.status(key) for key in keys] == stored
        settled |= dict(zip(keys, stored, strict=True))
    assert min(counted(bench)[kind] for kind in (*KINDS, "unreadable")) > ROUNDS / 2
    assert bench.listener.equipment.keys() <= {*NAMES}
    for key, status in settled.items():
        assert bench.status(key) is status or status in (Status.PENDING, Status.EXPIRED)
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
