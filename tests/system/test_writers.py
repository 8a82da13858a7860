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
from programs import MIGRATIONS, wait_until
from replicas import NOW, TIMEOUTS, store
from schemas import Verdict
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


def at_once(database: Database, function, *arguments) -> list:
    """The results of a function in several threads that call it at the same moment."""
    together = threading.Barrier(WRITERS)

    def call(*own):
        together.wait(60)
        with database.connection_context():
            return function(*own)

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(call, *(arguments or [range(WRITERS)])))


def test_writers_that_claim_at_once_take_disjoint_shares_of_everything(database):
    keys = store(database, 3000)

    def claim(_) -> list[list[UUID]]:
        shares = []
        while not shares or shares[-1]:
            with begin(database):
                asked = models.claim(database, NOW, TIMEOUTS, models.CLAIM, waiting=True)
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


def test_one_key_that_is_used_at_once_makes_one_transaction(database):
    several = [[Draft(1, f"key-{number}") for number in range(50)] for _ in range(WRITERS)]

    def start(drafts: list[Draft]) -> list[UUID]:
        with begin(database):
            answers, _ = models.create_transactions(database, drafts, NOW, NOW, TIMEOUTS, 0)
        return [answer.id for answer in answers]

    answers = at_once(database, start, several)
    assert all(answer == answers[0] for answer in answers)
    assert len(models.list_transactions(database, 1000)) == 50
