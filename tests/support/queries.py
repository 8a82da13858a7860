"""The functions of `models` as tests call them."""

import time
from functools import partial
from uuid import UUID

import models
from kit.clock import SECOND
from models import Draft, Settled, Timeouts
from schemas import Verdict

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
        self.create_transactions(drafts, now, now, TIMEOUTS, room)
        return [draft.id for draft in drafts]

    def settle(self, verdicts: list[tuple], now=NOW) -> list[Settled]:
        return models.settle(self.database, [Verdict(*verdict) for verdict in verdicts], now, now)

    def expire(self, now) -> list[UUID]:
        return models.expire(self.database, now, now)

    def claim(self, now, limit=MANY, waiting=False) -> list:
        return models.claim(self.database, now, TIMEOUTS, limit, waiting)
