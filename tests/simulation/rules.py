"""What must always be true. The rules see each commit, publish, acknowledgement and answer at once."""

import json
from bisect import insort
from typing import NamedTuple
from uuid import UUID

from broker import GARBAGE, TAKEN
from kit.clock import SECOND, microseconds
from mqtt_listener import QUESTIONS, VERDICTS

DAY = 86400 * SECOND
SETTLED = ("COMPLETED", "ERROR")
ALLOWED = {("PENDING", "COMPLETED"), ("PENDING", "ERROR"), ("PENDING", "EXPIRED"), ("EXPIRED", "PENDING")}
ALLOWED |= {("EXPIRED", "COMPLETED"), ("EXPIRED", "ERROR")}


class Row(NamedTuple):
    id: str
    status: str
    created: int
    updated: int
    station_id: int
    idempotency_key: str | None


COLUMNS = ", ".join(Row._fields)
CHANGES = f"SELECT number, what, {COLUMNS} FROM journal WHERE number > ? ORDER BY number"
OPENED = 'SELECT count(*) FROM "transaction" WHERE retry_at IS NOT NULL AND expires_at > 0'
ATTEMPTS = 'SELECT attempts FROM "transaction" WHERE id = ?'
STORED = f'SELECT {COLUMNS} FROM "transaction"'


class Violation(AssertionError):
    """A rule was broken; the text begins with the rule."""


class Rules:
    """What is stored, as the journal has it, and what anyone was promised."""

    def __init__(self, world):
        self.world = world
        self.rows: dict[str, Row] = {}  # committed
        self.deleted: dict[str, int] = {}  # and when
        self.last = self.newest = self.stored = 0  # number in the journal; highest `updated`; without a key
        self.keys: dict[str | None, str] = {}
        self.requests = 0  # without a key, except those of which "nothing was stored"
        self.accepted: dict[str, tuple[int, int]] = {}  # ids that clients know, with station and creation
        self.denied: set[str] = set()  # ids of drafts of which "nothing was stored"
        self.sent: set[tuple[str, str]] = set()  # verdicts that the equipment has sent
        self.pending: dict[str, int] = {}  # questions that are PENDING, and since when
        self.asked: set[str] = set()  # published since they became PENDING
        self.clock_began: dict[str, int] = {}  # the broker took them late, and they were asked once
        self.settled: dict[str, tuple[int, int]] = {}  # when, and at which step
        self.verdicts: list[tuple[int, str, int]] = []  # cursor and station, in order

    def require(self, condition: object, rule: str, *about: object) -> None:
        if not condition:
            self.world.failures.append(": ".join([rule, *map(str, about)]))
            raise Violation(rule)

    # What a commit changed

    def committed(self, process) -> None:
        """Look at what a process has just committed."""
        process.committed_at = self.world.now
        changes = self.world.connection.execute(CHANGES, (self.last,)).fetchall()
        times = {change[5] for change in changes if change[1] != "DELETE"}
        self.require(len(times) <= 1, "one time for a batch", times)
        for updated in times:
            self.require(updated > self.newest, "`updated` rises with every commit", updated, self.newest)
            self.newest = updated
        steps = {"INSERT": self._insert, "UPDATE": self._update, "DELETE": self._delete}
        for number, what, *columns in changes:
            self.last = number
            steps[what](process, Row(*columns))
        if changes:
            self.world.note(process, "commits", [f"{one[1]} {one[2][-6:]} {one[3]}" for one in changes])
        ((opened,),) = self.world.connection.execute(OPENED)
        self.require(opened <= self.world.window, "at most WINDOW questions are open", opened)

    def _insert(self, process, row: Row) -> None:
        key = row.idempotency_key
        self.require(row.id not in self.rows, "an id is unique", row)
        self.require(row.status == "PENDING", "a new row is PENDING", row)
        self.require(row.id not in self.denied, "'nothing was stored' is true", row)
        self.require(key is None or key not in self.keys, "one key, one transaction", row)
        if key:
            self.keys[key] = row.id
        self.stored += key is None
        self.require(self.stored <= self.requests, "one request, one transaction", row)
        self.rows[row.id] = row
        self.pending[row.id] = self.world.now

    def _update(self, process, row: Row) -> None:
        old, now = self.rows[row.id], self.world.now
        self.rows[row.id] = row
        if row == old:
            return
        self.pending.pop(row.id, None)
        same = old._replace(status=row.status, updated=row.updated)
        self.require(same == row, "id, station, creation and key never change", old, row)
        self.require((old.status, row.status) in ALLOWED, "a stored verdict never changes", old, row)
        if row.status in SETTLED:
            self.require((row.id, row.status) in self.sent, "a verdict comes from equipment", row)
            self.settled[row.id] = now, self.world.steps
            insort(self.verdicts, (row.updated, row.id, row.station_id))
        elif row.status == "PENDING":
            self.pending[row.id] = now
            self.asked.discard(row.id)
            self.clock_began.pop(row.id, None)
        elif not self.world.skewed:
            timeout = self.world.timeout
            asked = row.id in self.asked or now - process.awake_since < timeout  # it was frozen
            # Or another process is frozen that still has it in its queue.
            asked |= any(one and one.queues(row.id) for one in self.world.processes)
            self.require(asked, "a question that was not asked does not expire", row)
            subscribed = now - process.subscribed_at >= timeout - SECOND
            self.require(subscribed, "a clock runs only while subscribed", row)
            running = now - self.clock_began.get(row.id, 0) >= timeout - SECOND
            self.require(running, "a clock starts when the broker takes the question", row)

    def _delete(self, process, row: Row) -> None:
        self.require(row.status != "PENDING", "retention deletes only finished rows", row)
        age = process.wall() - row.updated
        self.require(self.world.retention, "without RETENTION_DAYS nothing is deleted", row)
        self.require(age > self.world.retention - SECOND, "retention deletes only old rows", row, age / DAY)
        del self.rows[row.id]
        self.deleted[row.id] = self.world.now
        self.keys.pop(row.idempotency_key, None)

    # What a process does

    def published(self, topic: str, key: str) -> None:
        self.require(topic == QUESTIONS, "questions have one topic", topic)
        self.require(key in self.rows or key in self.deleted, "a question is committed first", key)
        self.asked.add(key)

    def taken(self, process, key: str, code) -> None:
        """The broker has acknowledged a question. Until the last commit before, its clock did not run."""
        late = code == TAKEN and self.world.now - self.pending.get(key, self.world.now) > SECOND
        if late and self.world.connection.execute(ATTEMPTS, (key,)).fetchall() == [(1,)]:
            self.clock_began.setdefault(key, process.committed_at)

    def acknowledged(self, topic: str, payload: bytes) -> None:
        if topic == VERDICTS and payload not in GARBAGE:
            key = UUID(json.loads(payload)["transaction_id"]).hex
            status = self.rows[key].status if key in self.rows else "COMPLETED"
            self.require(status in SETTLED, "a verdict is acknowledged after its commit", key, status)

    def in_time(self, process) -> None:
        """While the database can be written, every message is acknowledged soon."""
        if process.client.connected and process.client.outstanding:
            *_, received = next(iter(process.client.outstanding.values()))
            since = max(received, process.awake_since, process.writable_since)
            self.require(self.world.now - since < 15 * SECOND, "a message is acknowledged in time", received)

    # What clients were told

    def answered(self, draft, transaction) -> None:
        """A client was told 201, or 200 if its key was used before."""
        key, known = transaction.id.hex, (transaction.station.id, microseconds(transaction.created))
        self.require(known[0] == draft.station_id, "an answer is about the station of its request", key)
        if key not in self.deleted:
            self.require(key in self.rows, "what was answered 201 is stored", key)
            row = self.rows[key]
            self.require((row.station_id, row.created) == known, "it has its station and creation", row)
            self.require(row.idempotency_key == draft.idempotency_key, "it has its key", row)
        self.accepted[key] = known

    def refused(self, draft) -> None:
        """A client was told that nothing was stored."""
        self.requests -= draft.idempotency_key is None
        self.denied.add(draft.id.hex)
        self.require(draft.id.hex not in self.rows, "'nothing was stored' is true", draft.id)

    def read(self, transaction) -> None:
        """A client was told the state of a transaction."""
        if row := self.rows.get(transaction.id.hex):
            verdict = transaction.status if transaction.status in SETTLED else row.status
            self.require(row.status == verdict, "a verdict that a client saw stays", row, transaction)

    # Everything

    def everything(self) -> None:
        """Compare all rows with what the journal made of them, and with what clients know."""
        different = {Row(*row) for row in self.world.connection.execute(STORED)} ^ {*self.rows.values()}
        self.require(not different, "the journal is complete", different)
        for key, known in self.accepted.items():
            if key not in self.deleted:
                self.require(key in self.rows, "what was answered 201 is stored", key)
                found = self.rows[key].station_id, self.rows[key].created
                self.require(found == known, "it keeps its station and creation", found, known)
        self.require(not self.denied & self.rows.keys(), "'nothing was stored' is true")
