"""Several ledgers that write to one PostgreSQL at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import models
from batch import create, settle
from calls import looping
from kit import storage
from kit.settings import Settings
from ledger import Job, Ledger
from models import Draft
from programs import MIGRATIONS
from schemas import Verdict
from stepped import ledger

WRITERS, KEYS = 6, 50
# Numbers the commits: each change takes the next number while its writer holds the lock.
NUMBERED = """CREATE SEQUENCE commits;
    ALTER TABLE "transaction" ADD COLUMN number bigint;
    CREATE FUNCTION numbered() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.number = nextval('commits'); RETURN NEW; END $$;
    CREATE TRIGGER numbered BEFORE UPDATE ON "transaction" FOR EACH ROW EXECUTE FUNCTION numbered()"""


def test_updated_rises_in_the_order_of_commits_and_a_key_makes_one_transaction(postgres):
    url = postgres.fresh()
    together = threading.Barrier(WRITERS)
    database = storage.connect(url, 1)
    storage.prepare(database, MIGRATIONS)
    models.create_station(database, "Teste")
    database.close_all()

    def run(writer: Ledger) -> list:
        def do(function, item):
            writer.queue.put(job := Job(function, item))
            writer.step(0)
            return job.result

        together.wait(60)
        answers = [do(create, Draft(1, f"key-{number}")).id for number in range(KEYS)]
        for key in answers:
            do(settle, Verdict(key, "ERROR"))
        return answers

    with looping() as loop, ThreadPoolExecutor(WRITERS) as pool:
        writers = [ledger(Settings(database_url=url), loop) for _ in range(WRITERS)]
        for writer in writers:
            writer.store.recover()
        postgres.execute(NUMBERED, "shared")
        answers = list(pool.map(run, writers))
        for writer in writers:
            writer.store.close()
    assert all(answer == answers[0] for answer in answers)
    found = postgres.execute('SELECT updated FROM "transaction" ORDER BY number', "shared")
    assert found == sorted(set(found))
    assert len(found) == KEYS
