"""Several services on one PostgreSQL: each takes its share, any of them may die, and nothing is lost."""

import json
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from installation import metric
from load import Load
from peer import Peer
from programs import free_port, wait_until
from replicas import Replicas

COUNT = 150


@pytest.fixture
def replicas(tmp_path, programs, postgres):
    """A function that makes them: `replicas(3, VALIDATION_TIMEOUT="3")`."""
    return lambda count, **options: Replicas(tmp_path, programs, postgres, count, **options)


def test_every_question_on_the_wire_is_one_claim(replicas):
    run = replicas(3, VALIDATION_RETRY="2").start(equipment=False)
    with Peer(run.broker, "EQUIPMENT/VALIDATION") as peer:
        Load(run.services[0], total=COUNT).start().join()

        def asked() -> bool:
            """True if every transaction was asked again, and published as often as it was claimed."""
            claims = dict(run.query('SELECT id::text, attempts FROM "transaction"'))
            carried = Counter(json.loads(one.payload)["transaction_id"] for one in list(peer.messages))
            return min(claims.values()) >= 2 and carried == claims

        wait_until(asked, "each is asked as often as it was claimed")
    first = [metric(service, 'energy2go_questions_total{time="first"}') for service in run.services]
    assert sum(first) == COUNT
    run.equipment.start()
    run.settled()


def test_what_a_replica_without_the_broker_takes_is_asked_and_settled_by_another(replicas):
    run = replicas(2)
    run.services[0].environment["MQTT_PORT"] = str(free_port())
    run.start(cut_off=1)
    cut_off, other = run.services
    wait_until(lambda: "cannot be reached" in cut_off.get("/readyz").json["detail"], "it knows")
    answer = cut_off.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    assert answer.json["status"] in ("COMPLETED", "ERROR")
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert metric(other, 'energy2go_verdicts_total{kind="settled"}') == 1
    assert metric(cut_off, 'energy2go_questions_total{time="first"}') == 0


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


def test_gunicorn_may_have_three_workers(replicas):
    run = replicas(1)
    (service,) = run.services
    service.command += ["--workers", "3"]
    run.start()
    assert len(service.children) == 3
    run.load(clients=6, keep_alive=False)
    run.more(100)
    answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    assert answer.json["status"] in ("COMPLETED", "ERROR")
    one, *others = service.children
    os.kill(one, signal.SIGKILL)
    run.more(100)
    assert {*others} < {*service.children}
    service.send(signal.SIGHUP)
    wait_until(lambda: not {*others} & {*service.children}, "the old workers have gone")
    run.more(100)
    assert len(service.children) == 3
    assert set(run.finish()) == {201}


def test_every_replica_takes_its_share_and_they_agree_about_a_station(replicas):
    run = replicas(3, VALIDATION_RETRY="30").start()
    run.load(clients=4, pause=0)
    run.more(200)
    for load in run.loads:
        load.stop()
    run.settled()
    # Nothing is asked twice, no matter which replica answered the request or stored the verdict.
    stored, asked = run.query('SELECT count(*), sum(attempts) FROM "transaction"')[0]
    assert stored == asked
    for name in ('energy2go_questions_total{time="first"}', 'energy2go_verdicts_total{kind="settled"}'):
        shares = [metric(service, name) for service in run.services]
        assert sum(shares) == stored
        assert min(shares) > stored / 30, shares
    # A station goes or has transactions, whichever replica is faster.
    first, second, _ = run.services
    outcomes = Counter()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            number = first.post("/stations", {"description": "Teste"}).json["id"]
            deleted = pool.submit(first.request, "DELETE", f"/stations/{number}")
            created = pool.submit(second.post, "/transactions", {"station_id": number})
            outcomes[deleted.result().status, created.result().status] += 1
    assert outcomes.keys() <= {(204, 422), (409, 201)}
