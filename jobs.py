"""What the ledger is handed: the jobs of requests, which wait for a result, and the equipment's verdicts."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple
from uuid import UUID

from models import Order, Refusal
from schemas import Status


class Unavailable(Refusal):
    """The database cannot be written now; nothing was stored."""

    status = 503


class Job(Future):
    """What a request waits for: withdrawn by `cancel` until it is taken, answered after its commit."""

    def take(self) -> bool:
        """From here on it cannot be withdrawn; False if it was."""
        return self.running() or self.set_running_or_notify_cancel()

    def answer(self, result) -> None:
        """Let the request go on, with a result or with the refusal that it is."""
        if isinstance(result, Refusal):
            self.set_exception(result)
        else:
            self.set_result(result)


class Call(Job):
    """A function of `models` that writes, and its arguments."""

    def __init__(self, function: Callable, *arguments):
        super().__init__()
        self.function, self.arguments = function, arguments

    def outcome(self):
        """What the function returns, or the refusal that it raises; whatever else it raises is no ordinary bad case."""
        try:
            return self.function(*self.arguments)
        except Refusal as refusal:
            return refusal


class Creation(Job):
    """A transaction to be stored as PENDING."""

    def __init__(self, order: Order):
        super().__init__()
        self.order = order
        self.in_doubt = False  # the connection was lost while it was being committed


class Verdict(NamedTuple):
    """One answer of the equipment; `acknowledge` is called when it was dealt with, stored or not."""

    transaction_id: UUID
    status: Status
    acknowledge: Callable[[], None]
