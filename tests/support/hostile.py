"""Hostile messages to the service, and what each must change."""

import json
from collections import Counter
from typing import NamedTuple
from uuid import UUID

from hypothesis import strategies as st

from mqtt_listener import NAME, STATUSES, VERDICTS
from schemas import Status

KINDS = "settled", "late", "duplicate", "contradiction", "unknown"  # verdicts, as the ledger counts them
MB = 1_000_000
PACKET = 65_536  # bytes: max_packet_size in mosquitto.conf
LINES, LINE = 10, 500  # log lines allowed per second and kind of message; characters allowed per line


class Message(NamedTuple):
    """A message on `topic`. In `template`, {key} stands for the id of transaction number `who`, or of none.

    `means` is the verdict in it, or a word for another kind of message.
    """

    topic: str
    template: bytes
    who: int | None
    means: Status | str
    retained: bool = False

    def __repr__(self):
        return f"<{self.topic:.50} {self.template[:100]} {self.who} {self.means}>"

    def payload(self, keys: list[UUID]) -> bytes:
        key, payload = UUID(int=0) if self.who is None else keys[self.who], self.template
        words = {"{key}": str(key), "{KEY}": str(key).upper(), "{hex}": key.hex, "{none}": str(UUID(int=7))}
        for word, text in words.items():
            payload = payload.replace(word.encode(), text.encode())
        return payload


READABLE = [
    b'{"transaction_id": "{key}", "status": "{status}"}',
    b'\t\r\n{"status":"{status}","transaction_id":"{KEY}"} \n',
    b'{"transaction_id": "{hex}", "status": "{status}", "more": [null, {"status": "PENDING"}]}',
    b'{"\\u0073tatus": "{status}", "transaction_id": "{key}"}',
    b'{"status": "{other}", "transaction_id": "{none}", "transaction_id": "{key}", "status": "{status}"}',
    b'{"transaction_id": "{key}", "status": "{status}", "more": %s, "even more": 1e999}' % (b"9" * 5000),
    b'{"transaction_id": "{key}", "status": "{status}", "more": %s}' % (b"[" * 100 + b"]" * 100),
    b'{"transaction_id": "{key}", "status": "{status}", "reason": {"]": %s}}' % (b"[" * MB + b"]" * MB),
    b'{"transaction_id": "{key}", "status": "{status}", "more": "%s"}' % (b"x" * MB),
    b'{"transaction_id": "{key}", "status": "{status}", "more": "\\ud800", "reason": %s}' % (b"9" * 5000),
]
NO_STATUS = r"""
    null true 0 -0 1.5 1e999 NaN Infinity -Infinity [] {} ["COMPLETED"] "" "PENDING" "EXPIRED"
    "completed" "Error" "COMPLETED\u0000" "COMPLETED\n" "\ud800" "\udc00\ud800" "\ud83d\udd0b"
    COMPLETED 'ERROR' "\n2026-01-01\u001b[2J\u0085\u2028\r" "\u202eERROR"
"""
NO_ID = r"""
    null true 0 -1 1e999 NaN Infinity [] {} ["{key}"] {"id":"{key}"} "" "{{key}}" "urn:uuid:{key}"
    "{key}0" "-{key}" "{key}\u0000" "\ud800" "019d31b4" "------------------------------------" {key}
"""
UNREADABLE = [
    *(b'{"transaction_id": "{key}", "status": %s}' % status.encode() for status in NO_STATUS.split()),
    *(b'{"transaction_id": %s, "status": "COMPLETED"}' % key.encode() for key in NO_ID.split()),
    b'{"transaction_id": %s, "status": "COMPLETED"}' % (b"9" * 10_000),
    b'{"transaction_id": "{key}"}',
    b'{"status": "COMPLETED"}',
    b'{"transaction_id": "{key}", "Status": "COMPLETED"}',
    b'{"transaction_id": "{key}", "status": "COMPLETED", "status": "EXPIRED"}',
    b'{"transaction_id": "{key}", "status": "COMPLETED", "more": NaN}',
    b'{"transaction_id": "{key}", "status": "COMPLETED", "more": %s}' % (b"[" * 100_000),
    b'["{key}", "COMPLETED"]',
    b'"{\\"transaction_id\\": \\"{key}\\", \\"status\\": \\"COMPLETED\\"}"',
]
# A verdict with something around it, or in another encoding; no verdict at all; and much too long.
VERDICT = '{"transaction_id": "{key}", "status": "COMPLETED"}'
UNREADABLE += [(VERDICT[:-1] + ",}").encode(), *(f"{VERDICT}{more}".encode() for more in ("{}", "\0"))]
UNREADABLE += [f"\ufeff{VERDICT}".encode(), f"[{VERDICT}]".encode(), VERDICT.encode("utf-16")]
UNREADABLE += [b"transaction {key}", b"", b"\0", b"null", b"[]", b"{}"]
UNREADABLE += [
    b"[" * 100_000,
    b'{"transaction_id":' * 100_000,
    b"x" * MB,
    b"\xff" * MB,
    b" " * MB,
    b"9" * MB,
]
NO_EQUIPMENT_STATUS = "Online", "ONLINE", "online ", "online\n", "online\0", '"online"', "ónline"

whom = st.sampled_from([None, 0, 1, 2, 3])
VERDICTS_OF = {Status.COMPLETED: b"ERROR", Status.ERROR: b"COMPLETED"}  # each verdict, and the other one
characters = st.characters(exclude_categories=["Cs"])  # no surrogates

short = st.text(characters, max_size=9)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | short,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(short, some, max_size=3),
    max_leaves=3,
).map(lambda value: json.dumps(value).encode())


def spelled(template: bytes, status: Status) -> bytes:
    return template.replace(b"{status}", status.encode()).replace(b"{other}", VERDICTS_OF[status])


SPELLED = [(template, status) for template in READABLE[:4] * 4 + READABLE[4:] for status in VERDICTS_OF]
readable = st.tuples(st.sampled_from(SPELLED), whom).map(
    lambda drawn: Message(VERDICTS, spelled(*drawn[0]), drawn[1], drawn[0][1])
)
cut_off = st.tuples(st.sampled_from(READABLE[:5]), st.integers(1, 50)).map(
    lambda drawn: spelled(drawn[0], Status.ERROR).strip()[: -drawn[1]]
)
garbage = st.sampled_from(UNREADABLE) | st.sampled_from(UNREADABLE) | cut_off | st.binary(max_size=60)
unreadable = st.tuples(garbage | json_values, whom).map(
    lambda drawn: Message(VERDICTS, *drawn, "unreadable")
)
NAMES = "", " ", "validator-1", "$SYS", "%00", "\n\x1b[2J", "\u2028", "é" * 30_000, "a" * 65_000
NAMES += "a" * NAME, "🔋" * (NAME + 1)
names = st.sampled_from(NAMES)
names |= st.text(characters, max_size=20).filter(lambda name: not set(name) & set("+#/\0"))
SAID = (
    [b"online", b"offline", b"online", b"offline", b""] * 8
    + [text.encode() for text in NO_EQUIPMENT_STATUS]
    + UNREADABLE
)


def equipment_says(drawn: tuple) -> Message:
    name, payload, retained = drawn
    means = "status" if payload in (b"online", b"offline", b"") and 0 < len(name) <= NAME else "unreadable"
    return Message(STATUSES + name, payload, None, means, retained)


said = st.sampled_from(SAID) | st.binary(max_size=20)
statuses = st.tuples(names, said, st.booleans()).map(equipment_says)
messages = readable | unreadable | statuses


FOUR = [Status.PENDING, Status.PENDING, Status.EXPIRED, Status.COMPLETED]


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
