"""Several ledgers that write to one PostgreSQL at once."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from peewee import Database

import models
from batch import create, settle
from calls import looping
from kit import storage
from kit.clock import SECOND, moment
from kit.settings import Settings
from kit.sql import begin
from ledger import Job, Ledger
from models import Draft
from programs import MIGRATIONS, free_port, wait_until
from replicas import NOW, TIMEOUTS, store
from schemas import Status, Verdict
from stepped import ledger

WRITERS = 6


@pytest.fixture
def database(postgres):
    """A PostgreSQL database with one station; this process writes to it."""
    database = storage.connect(postgres.fresh(), WRITERS + 2)
    storage.prepare(database, MIGRATIONS, models.TABLES)
    models.create_station(database, "Teste")
    yield database
    database.close_all()


@pytest.fixture
def ledgers(database):
    """A function that makes so many ledgers on this test's database, without their threads."""
    made = []
    with looping() as loop:

        def make(count: int) -> list[Ledger]:
            settings = Settings(database_url=database.database, validation_retry=30)
            made.extend(ledger(settings, loop) for _ in range(count))
            for one in made:
                one.store.recover()
                assert one.store.problem == ""
            return made

        yield make
    for one in made:
        one.store.close()


def name_of(database: Database) -> str:
    """The name of a PostgreSQL database."""
    return database.connection().info.dbname


def at_once(database: Database, function, *arguments) -> list:
    """The results of a function in several threads that call it at the same moment."""
    together = threading.Barrier(WRITERS)

    def call(*own):
        together.wait(60)
        with database.connection_context():
            return function(*own)

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(call, *(arguments or [range(WRITERS)])))


@pytest.mark.parametrize("waiting", [True, False], ids=["for the first time", "again"])
def test_writers_that_claim_at_once_take_disjoint_shares_of_everything(database, waiting):
    keys = store(database, 3000)
    now = NOW + 5 * SECOND
    if not waiting:
        models.claim(database, NOW, TIMEOUTS, 3000, waiting=True)

    def claim(_) -> list[list[UUID]]:
        shares = []
        while not shares or shares[-1]:
            with begin(database):
                asked = models.claim(database, now, TIMEOUTS, models.CLAIM, waiting)
            shares.append([question.transaction_id for question, _ in asked])
        return shares

    shares = [share for writer in at_once(database, claim) for share in writer]
    claimed = Counter(key for share in shares for key in share)
    assert claimed.keys() == set(keys)
    assert set(claimed.values()) == {1}
    assert max(map(len, shares)) <= models.CLAIM


def test_a_claim_is_no_larger_when_the_planner_knows_nothing_of_the_table(database):
    store(database, 1)
    storage.execute(database, 'DELETE FROM "transaction"')
    storage.execute(database, "ANALYZE")
    store(database, 2000)
    assert len(models.claim(database, NOW, TIMEOUTS, models.CLAIM, waiting=True)) == models.CLAIM


def test_of_writers_that_settle_and_expire_at_once_one_changes_each(database):
    keys = store(database, 1000)
    models.claim(database, NOW, TIMEOUTS, 1000, waiting=True)
    late = NOW + 61 * SECOND

    def settle_or_expire(number: int) -> list[UUID]:
        if number % 2:
            with begin(database):
                return models.expire(database, late, late)
        settled = []
        for key in keys:
            with begin(database):
                ((kind, _),) = models.settle(database, [Verdict(key, "ERROR")], NOW, NOW)
            settled += [key] if kind in ("settled", "late") else []
        return settled

    results = at_once(database, settle_or_expire)
    changed = Counter((number % 2, key) for number, changed in enumerate(results) for key in changed)
    assert set(changed.values()) == {1}
    assert set(models.statuses(database, keys).values()) == {Status.ERROR}


# The lock that orders the writers

WAITS = "SELECT 1 FROM pg_locks WHERE NOT granted"


def test_a_ledger_takes_its_time_after_the_writer_before_it(postgres, database, ledgers):
    (writer,) = ledgers(1)
    job = Job(create, Draft(1))
    writer.queue.put(job)
    (first,) = store(database, 1)
    hour = NOW + 3600 * SECOND
    with begin(database):
        step = threading.Thread(target=writer.step, args=(0,))
        step.start()
        wait_until(lambda: postgres.execute(f"{WAITS} AND locktype = 'advisory'"), "the ledger waits")
        models.settle(database, [Verdict(first, "ERROR")], hour, NOW)
    step.join(60)
    assert models.newest_change(database)[0] > hour
    assert job.result.created > moment(hour)


def test_updated_rises_in_the_order_of_commits(database, ledgers):
    keys, several = store(database, WRITERS * 50), ledgers(WRITERS)
    # Numbers the commits: each change takes the next number while its writer holds the lock.
    storage.execute(database, "CREATE SEQUENCE commits")
    storage.execute(database, 'ALTER TABLE "transaction" ADD COLUMN number bigint')
    storage.execute(
        database,
        """CREATE FUNCTION numbered() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN NEW.number = nextval('commits'); RETURN NEW; END $$""",
    )
    each = 'BEFORE UPDATE ON "transaction" FOR EACH ROW EXECUTE FUNCTION numbered()'
    storage.execute(database, f"CREATE TRIGGER numbered {each}")

    def run(writer: Ledger, own: list[UUID]) -> None:
        for key in own:
            writer.queue.put(Job(settle, Verdict(key, "ERROR")))
            writer.step(0)

    at_once(database, run, several, [keys[number::WRITERS] for number in range(WRITERS)])
    found = storage.execute(database, 'SELECT updated FROM "transaction" ORDER BY number')
    updated = [moment for (moment,) in found]
    assert updated == sorted(set(updated))
    assert len(updated) == len(keys)


def test_ledgers_that_settle_the_same_in_opposite_orders_lose_nothing(database, ledgers):
    keys = store(database, 400)
    acknowledged = []

    def run(writer: Ledger, turned: bool) -> None:
        statuses = ["ERROR", "COMPLETED"] if turned else ["COMPLETED", "ERROR"]
        for number, key in enumerate(keys):
            verdict = Verdict(key, statuses[number % 2])
            writer.queue.put(Job(settle, verdict, lambda _: acknowledged.append(1)))
        while not writer.queue.empty():
            writer.step(1)

    several = ledgers(WRITERS)
    at_once(database, run, several, [number % 2 for number in range(WRITERS)])
    assert len(acknowledged) == WRITERS * len(keys)
    assert sum(writer.counts["settled"] for writer in several) == len(keys)
    assert Counter(models.statuses(database, keys).values()).keys() == {Status.COMPLETED, Status.ERROR}


def test_one_key_that_is_used_at_once_makes_one_transaction(database):
    several = [[Draft(1, f"key-{number}") for number in range(50)] for _ in range(WRITERS)]

    def start(drafts: list[Draft]) -> list[UUID]:
        with begin(database):
            answers, _ = models.create_transactions(database, drafts, NOW, NOW, TIMEOUTS, 0)
        return [answer.id for answer in answers]

    answers = at_once(database, start, several)
    assert all(answer == answers[0] for answer in answers)
    assert len(models.list_transactions(database, 1000)) == 50


def test_a_url_may_name_several_servers_and_a_password_of_any_kind(postgres, database):
    dead, name = free_port(), name_of(database)
    query = f"host=127.0.0.1,127.0.0.1&port={dead},{postgres.port}"
    query += "&target_session_attrs=read-write&connect_timeout=3"
    other = storage.connect(f"postgresql://energy2go:p%40ss%2Fword%25@/{name}?{query}", 1)
    storage.ping(other)
    connection = other.connection()
    assert connection.info.port == postgres.port
    assert connection.info.password == "p@ss/word%"
    assert connection.info.get_parameters()["connect_timeout"] == "3"
    assert connection.info.get_parameters()["tcp_user_timeout"] == "10000"
    other.close_all()
