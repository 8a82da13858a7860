"""The functions of `models` as tests call them."""

import time
from functools import partial
from uuid import UUID

import models
from kit import storage
from kit.clock import SECOND
from models import Draft, Settled, Timeouts
from schemas import Status, Verdict

TIMEOUTS = Timeouts(retry=5 * SECOND, timeout=60 * SECOND)
NOW = int(time.time() * SECOND)
MANY = 10_000


class Queries:
    """The functions of `models`, called with a test's database and with one clock for both times."""

    def __init__(self, database):
        self.database = database

    def __getattr__(self, name):
        return partial(getattr(models, name), self.database)

    def create(self, count=1, now=NOW, room=MANY, key=None) -> list[UUID]:
        drafts = [Draft(1, key) for _ in range(count)]
        self.store(drafts, now, room)
        return [draft.id for draft in drafts]

    def store(self, drafts, now=NOW, room=MANY):
        return models.create_transactions(self.database, drafts, now, now, TIMEOUTS, room)

    def settle(self, verdicts: dict, now) -> list[Settled]:
        return models.settle(self.database, [Verdict(*verdict) for verdict in verdicts.items()], now, now)

    def expire(self, now) -> list[UUID]:
        return models.expire(self.database, now, now)

    def claim(self, now, limit=MANY, waiting=False) -> list[UUID]:
        return [question.transaction_id for question, _ in self.questions(now, limit, waiting)]

    def questions(self, now, limit=MANY, waiting=False) -> list:
        return models.claim(self.database, now, TIMEOUTS, limit, waiting)

    def status(self, key: UUID) -> Status:
        return models.get_transaction(self.database, key).status

    def count(self) -> int:
        return storage.execute(self.database, 'SELECT count(*) FROM "transaction"')[0][0]
