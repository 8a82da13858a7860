"""The work in one database transaction: a function for each kind of job.

A batch function gets all items for it at once. It returns a result for each, if they have any.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import models
from kit.clock import SECOND
from kit.errors import Refusal
from schemas import Status, Transaction, Verdict

if TYPE_CHECKING:  # it imports this module
    from ledger import Ledger

ROUND = SECOND // 4  # how often the ledger looks for questions that are late or due
DELETION = 300  # transactions that one round deletes at most
BEHIND = 60 * SECOND  # how far the newest row may be ahead of the wall clock


class Batch:
    """One database transaction: its times, and the work left for after its commit.

    `session` is the listener's, once everything was asked again in it; 0: some questions may be lost.
    Everything old was deleted up to the cursor `deleted`.
    """

    def __init__(self, ledger: "Ledger"):
        self.database, self.listener, self.timeouts = ledger.store.database, ledger.listener, ledger.timeouts
        self.session, self.deleted = ledger.session, ledger.deleted
        # Taken under the lock that orders commits, so `updated` rises with every commit of every process.
        wall = ledger.clock.wall()
        self.now = max(wall, models.latest(self.database) + 1)
        self.behind = self.now - wall  # how far the newest row is ahead of the wall clock
        self.clock = ledger.clock.steady()
        self.questions: list[models.Asked] = []  # to publish
        self.counts: Counter[str] = Counter()
        self.delays: list[int] = []  # microseconds from question to verdict
        self.events: list[tuple[str, UUID]] = []  # to log: new states, by transaction
        self.more = False  # more questions can be opened at once

    def room(self) -> int:
        """How many questions may be opened now. We count in each batch, as other processes open some too."""
        return models.room(self.database) if self.listener.subscribed else 0

    def ask(self, questions: list[models.Asked], time: str) -> None:
        """Publish these after the commit; `time` is "first" or "again"."""
        self.questions += questions
        self.counts[time] += len(questions)


def settle(batch: Batch, verdicts: Sequence[Verdict]) -> list[models.Settled]:
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


def ask_again(batch: Batch, sessions: Sequence[int]) -> None:
    """Ask everything PENDING again, since some may be lost. A new session starts the deadlines anew."""
    models.ask_again(batch.database, batch.clock, any(sessions))
    batch.session = max(batch.session, *sessions)


def create(batch: Batch, drafts: Sequence[models.Draft]) -> list[Transaction | Refusal]:
    """Store new transactions as PENDING, and ask about them while there is room."""
    about = batch.now, batch.clock, batch.timeouts, batch.room()
    answers, questions = models.create_transactions(batch.database, drafts, *about)
    batch.ask(questions, "first")
    for draft, answer in zip(drafts, answers, strict=True):
        if isinstance(answer, Transaction) and answer.id == draft.id:
            batch.counts[Status.PENDING] += 1
            batch.events.append(("stored", draft.id))
    return answers


def retry(batch: Batch, transaction_ids: Sequence[UUID]) -> list[Transaction | Refusal]:
    """Make EXPIRED transactions PENDING again, and ask about them as about new ones."""
    about = batch.now, batch.clock, batch.timeouts, batch.room()
    answers, questions = models.retry(batch.database, transaction_ids, *about)
    batch.ask(questions, "first")
    again = [answer.id for answer in answers if isinstance(answer, Transaction)]
    batch.counts[Status.PENDING] += len(again)
    batch.events += [("retried", transaction_id) for transaction_id in again]
    return answers


def look_after(batch: Batch, _: Sequence[None]) -> None:
    """Expire late questions, ask due ones again, and open waiting ones, but only while connected."""
    # Deadlines from an earlier connection don't count: `ask_again` starts them anew first.
    if not batch.listener.subscribed or batch.session < batch.listener.session:
        return
    database, clock, timeouts = batch.database, batch.clock, batch.timeouts
    models.hold(database, clock, timeouts, batch.listener.held(ROUND))
    expired = models.expire(database, batch.now, clock)
    batch.events += [(Status.EXPIRED.value, transaction_id) for transaction_id in expired]
    batch.counts[Status.EXPIRED] += len(expired)
    batch.ask(models.claim(database, clock, timeouts, models.CLAIM), "again")
    opened = models.claim(database, clock, timeouts, min(batch.room(), models.CLAIM), waiting=True)
    batch.ask(opened, "first")
    batch.more = len(opened) == models.CLAIM


def delete_old(batch: Batch, _: Sequence[None]) -> None:
    """Delete some transactions that have been finished for longer than RETENTION_DAYS.

    If the newest one is from the future, some clock is or was wrong, so don't delete any.
    """
    if batch.behind <= BEHIND:
        before = batch.now - batch.behind - batch.timeouts.retention
        batch.deleted, count = models.delete_finished(batch.database, before, batch.deleted, DELETION)
        batch.counts["deleted"] += count


# Verdicts come first, so that they are settled before anything expires.
ORDER = (settle, change, ask_again, create, retry, look_after, delete_old)
