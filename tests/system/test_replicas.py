"""Several services on one PostgreSQL and one broker: each takes its share, any of them may go, and nothing is lost."""

import contextlib
import itertools
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from uuid_utils.compat import uuid4, uuid7

import models
import storage
from clients import drive, request
from jobs import Call, Creation, Verdict
from ledger import Ledger
from load import Load
from models import SECOND, Clocks, Order
from peer import Peer
from programs import Broker, Equipment, Nginx, Postgres, Program, Service, free_port, listening, wait_until
from schemas import Status
from settings import Settings

CLOCKS = Clocks(retry=5 * SECOND, timeout=60 * SECOND)
NOW = int(time.time() * SECOND)
WRITERS = 6
COUNT = 300
RETRY = 2  # VALIDATION_RETRY of the services, in seconds
SETTLED_WITHIN = RETRY + 5  # seconds after the end of a fault


# Writers in one process, each with a connection of its own


@pytest.fixture
def database(postgres):
    """A database with one station, which this test's process writes to."""
    storage.bind(postgres.create())
    storage.migrate()
    models.create_station("Teste")
    yield storage.proxy
    storage.close()


def store(count: int) -> list[UUID]:
    """So many transactions that wait to be asked; their ids."""
    orders = [Order(uuid7(), 1, None) for _ in range(count)]
    with storage.writing():
        models.create_transactions(orders, NOW, CLOCKS, 0)
    return [order.transaction_id for order in orders]


def at_once(function, *arguments) -> list:
    """What a function returns in each of some threads that call it at the same moment, with one argument of each."""
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
        # In the same order everywhere; whoever settles in another one is tested below.
        return [key for key in keys if models.settle({key: Status.ERROR}, NOW)]

    changed = Counter((number % 2, key) for number, keys in enumerate(at_once(settle)) for key in keys)
    assert set(changed.values()) == {1}
    assert set(models.statuses(keys).values()) == {Status.ERROR}


class Wire:
    """What a ledger is handed for MQTT here: it drops everything."""

    alive = True

    def publish(self, questions) -> None:
        pass


def ledgers(count: int, postgres: Postgres) -> list[Ledger]:
    """Ledgers on the database of this test, without their threads; each has a connection once one runs it."""
    found = [Ledger() for _ in range(count)]
    for ledger in found:
        ledger.prepare(Settings(database_url=postgres.url("any"), validation_retry=30), Wire())
    return found


def deadlock(postgres: Postgres, ledger: Ledger, first: UUID, second: UUID, sql: str) -> None:
    """A step of the ledger, which locks the first row and then the second, and another who does it in turned order."""
    name = storage.proxy.database
    # Whoever has waited for this long looks for a deadlock, and gives up if there is one: the ledger, not the other.
    postgres.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '2s'")
    storage.close()
    with psycopg.connect(postgres.url(name)) as other:
        other.execute("SET deadlock_timeout = '1min'")
        other.execute(sql, (second,))
        writer = threading.Thread(target=lambda: (ledger.step(0), storage.close()))
        writer.start()
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted"
        wait_until(lambda: postgres.execute(waits), "the ledger has the first and waits for the second")
        other.execute(sql, (first,))  # returns, because the ledger gave up
        other.commit()
        writer.join(30)


def test_a_batch_that_deadlocks_is_written_again(postgres, database, caplog):
    (ledger,) = ledgers(1, postgres)
    first, second, third = store(3)
    acknowledged = []
    verdicts = {first: Status.COMPLETED, second: Status.ERROR, third: Status.ERROR}
    jobs = [Call(models.create_station, "new"), Creation(Order(uuid7(), 1, None))]
    jobs += [Verdict(key, status, lambda key=key: acknowledged.append(key)) for key, status in verdicts.items()]
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
    assert (ledger.counts["settled"], ledger.counts["contradiction"], ledger.counts["duplicate"]) == (1, 1, 1)


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
    orders = [[Order(uuid7(), 1, f"key-{number}") for number in range(50)] for _ in range(WRITERS)]

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
    query = f"host=127.0.0.1,127.0.0.1&port={dead},{postgres.port}&target_session_attrs=read-write&connect_timeout=3"
    storage.bind(f"postgresql://energy2go:p%40ss%2Fword%25@/{name}?{query}")
    storage.check()
    connection = storage.proxy.connection()
    assert connection.info.port == postgres.port
    assert connection.info.password == "p@ss/word%"
    assert connection.info.get_parameters()["connect_timeout"] == "3"
    assert connection.info.get_parameters()["tcp_user_timeout"] == "10000"


# Services


class Replicas:
    """Broker, equipment and services on one database, and a load on each service."""

    def __init__(self, folder: Path, programs: list, postgres: Postgres, count: int, **options):
        self.postgres, self.database = postgres, postgres.create().rpartition("/")[2]
        self.broker = Broker(folder)
        self.equipment = Equipment(folder, self.broker)
        options = {"DATABASE_URL": postgres.url(self.database), "VALIDATION_RETRY": str(RETRY)} | options
        names = [f"replica-{number}" for number in range(count)]
        self.services = [Service(folder, self.broker, name=name, **options) for name in names]
        self.loads = []
        programs += [self.broker, self.equipment, *self.services]

    def start(self, equipment: bool = True, cut_off: int = 0):
        """Start everything, the services at the same time on an empty database; the first ones may find no broker."""
        self.broker.start()
        if equipment:
            self.equipment.start()
        for service in self.services:
            Program.start(service)
        for service in self.services[:cut_off]:
            wait_until(lambda: listening(service.port), "it listens")  # noqa: B023
        for service in self.services[cut_off:]:
            wait_until(service.ready, "a replica is ready", 30)
        self.services[-1].post("/stations", {"description": "Teste"})
        return self

    def load(self, **options) -> None:
        """A load on each service."""
        self.loads = [Load(service, **{"clients": 4, "pause": 0.02} | options).start() for service in self.services]

    def more(self, count: int = 30, loads: list[Load] | None = None) -> None:
        """Go on until each load had that many more accepted."""
        loads = self.loads if loads is None else loads
        goals = [len(load.accepted) + count for load in loads]
        accepted = lambda: all(len(load.accepted) >= goal for load, goal in zip(loads, goals, strict=True))  # noqa: E731
        wait_until(accepted, f"{count} more are accepted", 30)

    def query(self, sql: str) -> list[tuple]:
        return self.postgres.execute(sql, self.database)

    def count(self, status: str) -> int:
        return self.query(f"SELECT count(*) FROM \"transaction\" WHERE status = '{status}'")[0][0]

    def settled(self, within: float = SETTLED_WITHIN) -> None:
        wait_until(lambda: not self.count("PENDING"), "nothing is PENDING", within)
        assert not self.count("EXPIRED")

    def finish(self) -> Counter:
        """End the loads; everything must be settled soon, and be what clients were told. How often each status came."""
        for load in self.loads:
            load.stop()
        self.settled()
        stored = dict(self.query('SELECT id::text, idempotency_key FROM "transaction" WHERE idempotency_key NOTNULL'))
        accepted = [key for load in self.loads for key in load.accepted]
        refused = {key for load in self.loads for key in load.refused}
        broken = {key for load in self.loads for key in load.broken}
        assert len(accepted) == len(set(accepted))
        assert not set(accepted) - stored.keys(), "a transaction is lost"
        assert not refused & set(stored.values()), "a client was told a failure for what is stored"
        assert {stored[key] for key in stored.keys() - set(accepted)} <= broken, "something nobody asked for is stored"
        return sum((load.statuses for load in self.loads), Counter())


@pytest.fixture
def replicas(tmp_path, programs, postgres):
    """A function that makes them: `replicas(3, VALIDATION_TIMEOUT="3")`."""
    return lambda count, **options: Replicas(tmp_path, programs, postgres, count, **options)


def metric(service: Service, name: str) -> float:
    """One number that a service gives to Prometheus."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", service.get("/metrics").body.decode(), re.MULTILINE)
    return float(found[1])


def test_every_question_on_the_wire_is_one_claim(replicas):
    run = replicas(3, VALIDATION_RETRY="4").start(equipment=False)
    with Peer(run.broker, "EQUIPMENT/VALIDATION") as peer:
        storage.bind(run.postgres.url(run.database))
        store(COUNT)
        storage.close()

        def asked() -> bool:
            """Each was asked again, by whichever replica, and the wire has carried each as often as it was claimed."""
            claims = dict(run.query('SELECT id::text, attempts FROM "transaction"'))
            carried = Counter(json.loads(message.payload)["transaction_id"] for message in list(peer.messages))
            return min(claims.values()) >= 2 and carried == claims

        wait_until(asked, "each is asked as often as it was claimed", 30)
    first = [metric(service, 'energy2go_questions_total{time="first"}') for service in run.services]
    assert sum(first) == COUNT
    run.equipment.start()
    run.settled(20)


def test_a_request_waits_for_a_verdict_that_another_replica_stores(replicas):
    run = replicas(2).start()
    asked, other = run.services
    for _ in range(12):
        answer = asked.post("/transactions", {"station_id": 1}, Prefer="wait=20")
        assert answer.json["status"] in ("COMPLETED", "ERROR")
        assert answer.headers["Preference-Applied"] == "wait=20"
    assert metric(other, 'energy2go_verdicts_total{kind="settled"}') > 0
    assert metric(other, 'energy2go_questions_total{time="first"}') == 0


def test_what_a_replica_without_the_broker_takes_is_asked_by_another(replicas):
    run = replicas(2)
    run.services[0].environment["MQTT_PORT"] = str(free_port())
    run.start(cut_off=1)
    cut_off, _ = run.services
    wait_until(lambda: "cannot be reached" in cut_off.get("/readyz").json["detail"], "it knows")
    answer = cut_off.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    assert answer.json["status"] in ("COMPLETED", "ERROR")


def test_one_replica_is_killed_and_another_stopped_under_load(replicas):
    run = replicas(3).start()
    run.load()
    run.more()
    first, second, _ = run.services
    first.crash()
    run.more(50, run.loads[1:])
    assert second.stop() == 0
    run.more(50, run.loads[2:])
    assert set(run.finish()) == {201}
    assert not run.loads[2].broken


def test_postgresql_is_restarted_and_killed_under_load(replicas, postgres):
    run = replicas(2).start()
    run.load()
    ends = {"restarted": signal.SIGINT, "ended at once": signal.SIGQUIT, "killed": None, "killed again": None}
    for number in ends.values():
        run.more()
        try:
            postgres.stop(number) if number else postgres.crash()
            for service in run.services:
                refused(service)
        finally:
            postgres.start()
        run.more()
    assert set(run.finish()) == {201, 503}
    assert not any(load.broken for load in run.loads)
    for service in run.services:
        for _ in range(20):  # more than there are threads, whose old connections are all broken
            assert service.get("/readyz").status == 200
        answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=20")
        assert answer.headers["Preference-Applied"] == "wait=20"


def test_a_commit_in_doubt_is_settled_and_stops_nobody_meanwhile(replicas, postgres):
    run = replicas(1).start()
    (service,) = run.services
    with psycopg.connect(postgres.url(run.database)) as other:
        # Requests pile up, as many as there are threads, behind a ledger that waits for this lock.
        other.execute('LOCK TABLE "transaction" IN ACCESS EXCLUSIVE MODE')
        wait_until(lambda: postgres.execute("SELECT 1 FROM pg_locks WHERE NOT granted"), "the ledger waits")
        run.load(clients=24, pause=0)
        threading.Event().wait(1)
        # Their commit is on disk and does not return, because another server is to confirm it, which does not exist.
        postgres.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        postgres.execute("SELECT pg_reload_conf()")
        wait_until(lambda: postgres.execute("SHOW synchronous_standby_names") == [("nobody",)], "it is to be confirmed")
        postgres.execute("ALTER SYSTEM RESET synchronous_standby_names")
        other.rollback()
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        wait_until(lambda: postgres.execute(waits), "the commit is under way")
    try:
        postgres.stop(signal.SIGQUIT)
        refused(service)
    finally:
        postgres.start()
    run.more(100)
    assert set(run.finish()) == {201, 503}
    assert not run.loads[0].broken


def refused(service: Service) -> None:
    """A service without its database says so, to whoever asks for whatever."""
    key = str(uuid4())
    answers = [service.post("/transactions", {"station_id": 1}, Idempotency_Key=key)]
    answers.append(service.post("/stations", {"description": "new"}))
    answers += [service.get(path) for path in ("/transactions", "/stations/1", "/healthz", "/readyz")]
    for answer in answers:
        assert answer.status == 503, answer.body
        assert answer.headers["Retry-After"]
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_gunicorn_may_have_two_workers(replicas):
    run = replicas(1)
    (service,) = run.services
    service.command += ["--workers", "2"]
    run.start()
    assert len(service.children) == 2
    run.load(clients=6, keep_alive=False)
    run.more(100)
    answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    assert answer.json["status"] in ("COMPLETED", "ERROR")
    one, other = service.children
    os.kill(one, signal.SIGKILL)
    run.more(100)
    assert other in service.children
    assert len(service.children) == 2
    assert set(run.finish()) == {201}


def test_a_station_goes_or_has_transactions_whichever_replica_is_faster(replicas):
    run = replicas(2).start()
    first, second = run.services
    outcomes = Counter()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            number = first.post("/stations", {"description": "Teste"}).json["id"]
            deleted = pool.submit(first.request, "DELETE", f"/stations/{number}")
            created = pool.submit(second.post, "/transactions", {"station_id": number})
            outcomes[deleted.result().status, created.result().status] += 1
    assert outcomes.keys() <= {(204, 422), (409, 201)}


POST = request("POST", "/transactions", b'{"station_id": 1}')


class Cpu:
    """What each of these programs spends on a processor, its children included, from now on."""

    def __init__(self, programs: list[Program]):
        self.programs = programs
        self.before = {program.name: self._spent(program) for program in programs}

    def _spent(self, program: Program) -> dict[int, int]:
        """Nanoseconds by process (clock_getcpuclockid(3)); one that has ended by now counts for nothing."""
        spent = {}
        for pid in (program.pid, *program.children):
            with contextlib.suppress(OSError):
                spent[pid] = time.clock_gettime_ns(~pid << 3 | 2)
        return spent

    def each(self, count: int) -> dict[str, float]:
        """Milliseconds by program, divided by so many transactions."""
        return {
            program.name: sum(
                spent - self.before[program.name].get(pid, 0) for pid, spent in self._spent(program).items()
            )
            / count
            / 1e6
            for program in self.programs
        }


@pytest.mark.parametrize("count", [1, 3])
def test_every_replica_takes_its_share_of_everything(replicas, programs, count):
    run = replicas(count, VALIDATION_RETRY="30").start()
    proxy = Nginx(run.services)
    programs.append(proxy)
    proxy.start()
    drive(proxy.port, itertools.repeat(POST), 32, 1)
    run.settled(30)
    cpu = Cpu([*run.services, run.postgres, run.broker, run.equipment, proxy])
    posts = len(drive(proxy.port, itertools.repeat(POST), 32, 2).ids)
    run.settled(30)
    spent = cpu.each(posts)
    print(f"{count} replicas: {posts / 2:.0f} posts a second, {sum(spent.values()):.2f} ms of CPU each:")
    print(", ".join(f"{name} {milliseconds:.2f}" for name, milliseconds in spent.items()))
    # Nothing is asked twice, whoever answered the request, and whoever stored the verdict.
    stored, asked = run.query('SELECT count(*), sum(attempts) FROM "transaction"')[0]
    assert stored == asked
    for name in ('energy2go_questions_total{time="first"}', 'energy2go_verdicts_total{kind="settled"}'):
        shares = [metric(service, name) for service in run.services]
        assert sum(shares) == stored
        assert min(shares) > stored / count / 2, shares
