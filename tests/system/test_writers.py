"""Several ledgers that write to one PostgreSQL at once."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import psycopg
import pytest
from jobs import Call, Creation, Verdict

import models
from kit import storage
from kit.settings import Settings
from ledger import Ledger
from models import SECOND, Order
from programs import Postgres, free_port, wait_until
from replicas import CLOCKS, NOW, store
from schemas import Status

WRITERS = 6


@pytest.fixture
def database(postgres):
    """A PostgreSQL database with one station; this process writes to it."""
    storage.bind(postgres.fresh())
    storage.migrate()
    models.create_station("Teste")
    yield storage.proxy
    storage.close()


def at_once(function, *arguments) -> list:
    """The results of a function in several threads that call it at the same moment."""
    together = threading.Barrier(WRITERS)

    def call(*own):
        try:
            together.wait(10)
            return function(*own)
        finally:
            storage.close()

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(call, *(arguments or [range(WRITERS)])))


@pytest.mark.parametrize("waiting", [True, False], ids=["for the first time", "again"])
def test_writers_that_claim_at_once_take_disjoint_shares_of_everything(database, waiting):
    keys = store(3000)
    now = NOW + 5 * SECOND
    if not waiting:
        models.claim(NOW, CLOCKS, 3000, waiting=True)

    def claim(_) -> list[list[UUID]]:
        shares = []
        while not shares or shares[-1]:
            with storage.writing():
                questions = models.claim(now, CLOCKS, models.CLAIM, waiting)
            shares.append([question.transaction_id for question in questions])
        return shares

    shares = [share for writer in at_once(claim) for share in writer]
    claimed = Counter(key for share in shares for key in share)
    assert claimed.keys() == set(keys)
    assert set(claimed.values()) == {1}
    assert max(map(len, shares)) <= models.CLAIM


def test_a_claim_is_no_larger_when_the_planner_knows_nothing_of_the_table(database):
    store(1)
    database.execute_sql('DELETE FROM "transaction"')
    database.execute_sql("ANALYZE")
    store(2000)
    assert len(models.claim(NOW, CLOCKS, models.CLAIM, waiting=True)) == models.CLAIM


def test_of_writers_that_settle_and_expire_at_once_one_changes_each(database):
    keys = store(1000)
    models.claim(NOW, CLOCKS, 1000, waiting=True)
    late = NOW + 61 * SECOND

    def settle(number: int) -> list[UUID]:
        if number % 2:
            return models.expire(late)
        # All threads settle in the same order; another test settles in opposite orders.
        return [key for key in keys if models.settle({key: Status.ERROR}, NOW)]

    changed = Counter((number % 2, key) for number, keys in enumerate(at_once(settle)) for key in keys)
    assert set(changed.values()) == {1}
    assert set(models.statuses(keys).values()) == {Status.ERROR}


class Wire:
    """Takes the listener's place and drops every question."""

    alive = True

    def publish(self, questions) -> None:
        pass


def ledgers(count: int, postgres: Postgres) -> list[Ledger]:
    """Ledgers on this test's database, without their threads."""
    found = [Ledger() for _ in range(count)]
    for ledger in found:
        ledger.prepare(Settings(database_url=postgres.url("any"), validation_retry=30), Wire())
    return found


def deadlock(postgres: Postgres, ledger: Ledger, first: UUID, second: UUID, sql: str) -> None:
    """Make the ledger lock two rows while another connection locks them in the opposite order."""
    name = storage.proxy.database
    # The side that waits this long looks for a deadlock and gives up: so the ledger does, not the other.
    postgres.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '2s'")
    storage.close()
    with psycopg.connect(postgres.url(name)) as other:
        other.execute("SET deadlock_timeout = '1min'")
        other.execute(sql, (second,))
        writer = threading.Thread(target=lambda: (ledger.step(0), storage.close()))
        writer.start()
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted"
        wait_until(lambda: postgres.execute(waits), "the ledger has the first and waits for the second")
        other.execute(sql, (first,))  # returns when the ledger gives up
        other.commit()
        writer.join(30)


def test_a_batch_that_deadlocks_is_written_again(postgres, database, caplog):
    (ledger,) = ledgers(1, postgres)
    first, second, third = store(3)
    acknowledged = []
    verdicts = {first: Status.COMPLETED, second: Status.ERROR, third: Status.ERROR}
    jobs = [Call(models.create_station, "new"), Creation(Order(uuid4(), 1, None))]
    jobs += [
        Verdict(key, status, lambda key=key: acknowledged.append(key)) for key, status in verdicts.items()
    ]
    for job in jobs:
        ledger._queue.put(job)
    settle = "UPDATE \"transaction\" SET status = 'ERROR', retry_at = NULL WHERE id = %s"
    deadlock(postgres, ledger, first, second, settle)
    assert "deadlock detected" in caplog.text
    station = jobs[0].result(0)
    assert [one.description for one in models.list_stations(9, None)] == ["Teste", station.description]
    assert models.get_transaction(jobs[1].result(0).id).status is Status.PENDING
    assert sorted(acknowledged) == [first, second, third]
    assert models.statuses(verdicts) == dict.fromkeys(verdicts, Status.ERROR)
    assert (ledger.counts["settled"], ledger.counts["contradiction"], ledger.counts["duplicate"]) == (
        1,
        1,
        1,
    )


def test_a_round_that_deadlocks_comes_again_and_starts_no_clock_anew(postgres, database, caplog):
    (ledger,) = ledgers(1, postgres)
    ledger.subscribed = True
    first, second, other = store(3)
    ledger.step(0)  # asks them
    expires_at = models.Transaction.get_by_id(other).expires_at
    for long_ago, key in enumerate((first, second), 1):
        models.Transaction.update(expires_at=long_ago).where(models.Transaction.id == key).execute()
    ledger._next_round = 0
    deadlock(postgres, ledger, first, second, 'UPDATE "transaction" SET updated = updated WHERE id = %s')
    assert "deadlock detected" in caplog.text
    assert set(models.statuses([first, second]).values()) == {Status.PENDING}
    wait_until(lambda: ledger.step(0.1) or ledger.counts[Status.EXPIRED] == 2, "both have expired")
    assert models.Transaction.get_by_id(other).expires_at == expires_at


def test_ledgers_that_settle_the_same_in_opposite_orders_lose_nothing(postgres, database):
    keys = store(400)
    acknowledged = []

    def run(ledger: Ledger, turned: bool) -> None:
        statuses = [Status.ERROR, Status.COMPLETED] if turned else [Status.COMPLETED, Status.ERROR]
        for number, key in enumerate(keys):
            ledger.settle(Verdict(key, statuses[number % 2], lambda: acknowledged.append(1)))
        while not ledger._queue.empty():
            ledger.step(1)

    several = ledgers(WRITERS, postgres)
    at_once(run, several, [number % 2 for number in range(WRITERS)])
    assert len(acknowledged) == WRITERS * len(keys)
    assert sum(ledger.counts["settled"] for ledger in several) == len(keys)
    assert Counter(models.statuses(keys).values()).keys() == {Status.COMPLETED, Status.ERROR}


def test_one_key_that_is_used_at_once_makes_one_transaction(database):
    orders = [[Order(uuid4(), 1, f"key-{number}") for number in range(50)] for _ in range(WRITERS)]

    def create(orders: list[Order]) -> list[UUID]:
        with storage.writing():
            answers, _ = models.create_transactions(orders, NOW, CLOCKS, 0)
        return [answer.id for answer in answers]

    answers = at_once(create, orders)
    assert all(answer == answers[0] for answer in answers)
    assert len(models.list_transactions(1000)) == 50


def test_a_url_may_name_several_servers_and_a_password_of_any_kind(postgres, database):
    dead, name = free_port(), storage.proxy.database
    storage.close()
    query = f"host=127.0.0.1,127.0.0.1&port={dead},{postgres.port}"
    query += "&target_session_attrs=read-write&connect_timeout=3"
    storage.bind(f"postgresql://energy2go:p%40ss%2Fword%25@/{name}?{query}")
    storage.check()
    connection = storage.proxy.connection()
    assert connection.info.port == postgres.port
    assert connection.info.password == "p@ss/word%"
    assert connection.info.get_parameters()["connect_timeout"] == "3"
    assert connection.info.get_parameters()["tcp_user_timeout"] == "10000"
