"""What one database transaction of the ledger does: a function for each kind of job.

A batch function gets all items of its kind in a batch, and returns a result for each.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from peewee import Database

import models
from kit.clock import SECOND, Clock
from kit.errors import Refusal
from models import FIRST, Asked, Cursor, Draft, Settled, Timeouts
from schemas import Status, Transaction, Verdict

ROUND = SECOND // 4  # how often the ledger looks for questions that are late or due
DELETION = 300  # transactions that one round deletes at most
BEHIND = 60 * SECOND  # how far the newest row may be ahead of the wall clock


class Publisher(Protocol):
    """What the ledger needs of the listener."""

    unreadable: int  # messages that were ignored
    session: int  # how often it was subscribed

    @property
    def alive(self) -> bool: ...  # False once its thread has died

    @property
    def subscribed(self) -> bool: ...  # True while questions can be asked and answered

    def publish(self, questions: Iterable[Asked]) -> None: ...

    def held(self, seconds: float) -> list[UUID]: ...  # questions that the broker has not taken for so long

    def watch(self) -> None: ...  # notice a broker that no longer answers


@dataclass
class State:
    """What a batch knows from the one before it. One that fails leaves nothing behind."""

    room: int = 0  # questions that may be opened; never more than models.room() says
    session: int = 0  # the listener's, once everything was asked again in it; 0: some may be lost
    deleted: Cursor = FIRST  # up to here everything old was deleted


class Batch:
    """One database transaction: its times, and what to do after its commit."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        clock: Clock,
        timeouts: Timeouts,
        retention: int,
        before: State,
    ):
        self.database, self.publisher, self.timeouts, self.retention = (
            database,
            publisher,
            timeouts,
            retention,
        )
        # Taken under the lock that orders commits, so `updated` rises with every commit of every process.
        wall = clock.wall()
        self.now = max(wall, models.newest_update(database) + 1)
        self.behind = self.now - wall  # how far the newest row is ahead of the wall clock
        self.clock = clock.steady()
        self.state = copy(before)
        self.questions: list[Asked] = []  # to publish
        self.counts: Counter[str] = Counter()
        self.delays: list[int] = []  # microseconds from question to verdict
        self.events: list[tuple[str, UUID]] = []  # to log: what it is now
        self.more = False  # more questions can be opened at once

    def take_room(self, wanted: int) -> int:
        """How many of so many questions may be opened now."""
        if not self.publisher.subscribed:
            return 0
        if self.state.room < wanted:
            self.state.room = models.room(self.database)
        taken = min(self.state.room, wanted)
        self.state.room -= taken
        return taken

    def open(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Transaction | Refusal]:
        """Call a function of `models` that makes transactions PENDING, and ask about those it says."""
        room = self.take_room(len(items))
        answers: list[Transaction | Refusal]
        answers, questions = function(self.database, items, self.now, self.clock, self.timeouts, room)
        self.state.room += room - len(questions)
        self.questions += questions
        self.counts["first"] += len(questions)
        return answers


def settle(batch: Batch, verdicts: Sequence[Verdict]) -> list[Settled]:
    """Store the first verdict of each transaction."""
    results = models.settle(batch.database, verdicts, batch.now, batch.clock)
    for verdict, settled in zip(verdicts, results, strict=True):
        batch.counts[settled.kind] += 1
        if settled.kind in ("settled", "late"):
            batch.counts[verdict.status] += 1
            batch.events.append((verdict.status, verdict.transaction_id))
        if settled.delay is not None:
            batch.delays.append(settled.delay)
    return results


def change(batch: Batch, calls: Sequence[Callable[..., Any]]) -> list[Any]:
    """Call functions of `models`; a refusal is a result too."""
    results = []
    for call in calls:
        try:
            results.append(call(batch.database))
        except Refusal as refusal:
            results.append(refusal)
    return results


def ask_again(batch: Batch, sessions: Sequence[int]) -> list[None]:
    """Ask everything PENDING again, since some may be lost. A new session starts the deadlines anew."""
    models.ask_again(batch.database, batch.clock, any(sessions))
    batch.state.session = max(batch.state.session, *sessions)
    batch.state.room = 0  # count anew
    return [None] * len(sessions)


def create(batch: Batch, drafts: Sequence[Draft]) -> list[Transaction | Refusal]:
    """Store new transactions as PENDING, and ask about as many as there is room for."""
    answers = batch.open(models.create_transactions, drafts)
    for draft, answer in zip(drafts, answers, strict=True):
        if isinstance(answer, Transaction) and answer.id == draft.id:
            batch.counts[Status.PENDING] += 1
            batch.events.append(("stored", draft.id))
    return answers


def retry(batch: Batch, transaction_ids: Sequence[UUID]) -> list[Transaction | Refusal]:
    """Make EXPIRED transactions PENDING again, and ask about them as about new ones."""
    answers = batch.open(models.retry, transaction_ids)
    again = [answer.id for answer in answers if isinstance(answer, Transaction)]
    batch.counts[Status.PENDING] += len(again)
    batch.events += [("retried", transaction_id) for transaction_id in again]
    return answers


def look_after(batch: Batch, items: Sequence[None]) -> list[None]:
    """Expire what is late, ask again what is due, open questions that wait; nothing while disconnected."""
    # Until `ask_again` has started them anew, the deadlines are those of an earlier connection.
    if not batch.publisher.subscribed or batch.state.session < batch.publisher.session:
        return [None] * len(items)
    models.hold(batch.database, batch.clock, batch.timeouts, batch.publisher.held(ROUND / SECOND))
    expired = models.expire(batch.database, batch.now, batch.clock)
    again = models.claim(batch.database, batch.clock, batch.timeouts, models.CLAIM)
    room = batch.take_room(models.CLAIM)
    opened = models.claim(batch.database, batch.clock, batch.timeouts, room, waiting=True)
    batch.state.room += room - len(opened)
    batch.questions += again + opened
    batch.events += [(Status.EXPIRED.value, transaction_id) for transaction_id in expired]
    batch.counts.update({Status.EXPIRED: len(expired), "again": len(again), "first": len(opened)})
    batch.more = len(opened) == models.CLAIM
    return [None] * len(items)


def delete_old(batch: Batch, items: Sequence[None]) -> list[int]:
    """Delete some of the transactions that have been finished for longer than RETENTION_DAYS.

    While the newest one is from the future, one of the clocks is or was wrong, so delete nothing.
    """
    deleted = 0
    if batch.behind <= BEHIND:
        before, state = batch.now - batch.behind - batch.retention, batch.state
        state.deleted, deleted = models.delete_finished(batch.database, before, state.deleted, DELETION)
        batch.counts["deleted"] += deleted
    return [deleted] * len(items)


# Verdicts come first, so that they are settled before anything expires.
ORDER = (settle, change, ask_again, create, retry, look_after, delete_old)
