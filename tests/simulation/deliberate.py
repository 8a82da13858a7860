"""Deliberate faults: texts of the product that are replaced by others. The rules must find each of them."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import batch
import models
from batch import Batch
from events import Changes
from ledger import Ledger
from mqtt_listener import Connection, Listener

OWN = "self.listener.__dict__.setdefault('own', set())"
STORED = f"models._by(self.database, 'id', {{one.hex for one in {OWN}}}).values()"
PENDING = f"sum(one.status == 'PENDING' for one in {STORED})"
DROP = "execute(database, 'DROP INDEX IF EXISTS transaction_idempotency_key')"
RUN = "results += zip(group, found, strict=True)"
Fault = list[tuple[Callable[..., object], str, str]]
FAULTS: dict[str, Fault] = {
    "questions are published before the commit": [
        (Ledger._commit, RUN, f"{RUN}\n                self.listener.publish(work.questions)")
    ],
    "a verdict is acknowledged before its commit": [
        (Listener._settle, "self._put(Job(settle, verdict, done))", "done(self._put(Job(settle, verdict)))")
    ],
    "retention goes by the clock that orders commits": [
        (batch.delete_old, "batch.behind <= BEHIND", "True"),
        (batch.delete_old, "batch.now - batch.behind", "batch.now"),
    ],
    "retention deletes what is PENDING": [(models.delete_finished, 'if status != "PENDING"', "if status")],
    "retention leaves no trace": [(models.delete_finished, "VALUES (1,", "VALUES (2,")],
    "nothing is asked again after a reconnect": [
        (batch.ask_again, "models.ask_again(batch.database, batch.clock, any(sessions))", "pass")
    ],
    "asking again is forgotten if its commit fails": [(Ledger._due, "if lost else []", "if False else []")],
    "deadlines run while there is no connection": [
        (batch.look_after, "if not batch.listener.subscribed or", "if False and")
    ],
    "equipment that flaps extends the deadline": [(batch.ask_again, "any(sessions)", "True")],
    "a question expires that the broker has not taken": [
        (batch.look_after, "models.hold(database, clock, timeouts, batch.listener.held(ROUND))", "pass")
    ],
    "a key is not unique": [(models._insert, "    if drafts:", f"    {DROP}\n    if drafts:")],
    "a used key is not looked up": [
        (models.create_transactions, "{draft.idempotency_key for draft in valid} - {None}", "()")
    ],
    "a transaction has another id when it is written again": [
        (models.create_transactions, "if not draft.created", "if draft")
    ],
    "a commit in doubt counts as not stored": [
        (Ledger._fail, "job.in_doubt |= isinstance(error, InDoubt)", "pass")
    ],
    "a withdrawn job is written": [(Ledger._take, "job.take()", "[job.take()]")],
    "verdicts that cannot be stored are forgotten": [
        (Ledger._recover, "[] if self.store.problem else held", "[]")
    ],
    "a verdict replaces another": [(models.settle, " AND status IN ('PENDING', 'EXPIRED')", "")],
    "a late verdict does not count": [(models.settle, "IN ('PENDING', 'EXPIRED')", "= 'PENDING'")],
    "`updated` is the time of the wall clock": [
        (Batch.__init__, "max(wall, models.latest(self.database) + 1)", "wall")
    ],
    "`updated` does not know what retention deleted": [
        (models.latest, "execute(database, statement)[0])", "execute(database, statement)[0][:1])")
    ],
    "the window is counted for each process": [
        (
            Batch.ask,
            "self.questions += questions",
            f"{OWN}.update(one[0].transaction_id for one in questions)\n        self.questions += questions",
        ),
        (Batch.room, "models.room(self.database)", f"models.WINDOW - {PENDING}"),
    ],
    "the cursor of an event is the time of creation": [
        (models.cursor, "transaction.updated", "transaction.created")
    ],
    "a stream goes on with what is new": [
        (Changes.follow, "(cursor or newest) if complete", "newest if complete")
    ],
    "a stream does not begin with a reset": [
        (Changes.follow, "cursor is None or deleted <= cursor <= newest", "True")
    ],
    "a stream does not see what retention deletes before it": [
        (Changes.follow, "if complete and deleted > cursor", "if False")
    ],
    "a stream that is behind skips a page": [(Changes._events, "if len(found) < PAGE:", "if True:")],
    "an acknowledgement goes to another connection": [
        (Listener._on_message, "connection is self._connection", "True")
    ],
    "the Receive Maximum of the broker is ignored": [
        (Connection.__init__, 'min(IN_FLIGHT, getattr(limits, "ReceiveMaximum", IN_FLIGHT))', "IN_FLIGHT")
    ],
    "what was not acknowledged goes into the next connection": [
        (Listener._on_connect, "client.drop_out_messages()", "pass")
    ],
}


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """The product with this fault."""
    codes = {function: function.__code__ for function, _, _ in fault}
    sources = {function: inspect.getsource(function) for function in codes}
    for function, text, other in fault:
        if text not in sources[function]:
            raise ValueError(f"{function.__qualname__} has no {text!r} any more")
        sources[function] = sources[function].replace(text, other)
    try:
        for function, source in sources.items():
            found: dict[str, Callable[..., object]] = {}
            exec("if True:\n" * source.startswith(" ") + source, function.__globals__, found)
            function.__code__ = found[function.__name__].__code__
        yield
    finally:
        for function, code in codes.items():
            function.__code__ = code
