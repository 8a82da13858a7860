"""The real service with a wall clock that is wrong, and is then corrected."""

import time

import pytest

from faulty import Faults
from installation import metric
from load import Load
from programs import wait_until
from replicas import Replicas

ORDER = 'SELECT id, created, updated FROM "transaction" ORDER BY id DESC'
HOUR = 3600


@pytest.fixture
def faults(tmp_path):
    return Faults(tmp_path)


def post(service) -> str:
    answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=10")
    assert answer.json["status"] in ("COMPLETED", "ERROR")
    return answer.json["id"]


def sane(service, keys: list[str]) -> None:
    """Check the order of the newest, their times, and the metrics; `keys` are in the order of commits."""
    items = service.get("/transactions?limit=200").json["items"]
    assert [item["id"] for item in items] == keys[::-1]
    created = [item["created"] for item in items]
    assert created == sorted(created, reverse=True)
    assert all(item["created"] <= item["updated"] for item in items)
    updated = [item["updated"] for item in items]
    assert len(set(updated)) == len(updated)
    values = [
        float(line.rpartition(" ")[2])
        for line in service.get("/metrics").body.decode().splitlines()
        if line.startswith("energy2go_")
    ]
    assert min(values) >= 0


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("start", [HOUR, -HOUR, -time.time() + 60], ids=["ahead", "behind", "1970"])
def test_a_clock_that_is_corrected_keeps_the_order(running, faults, start, restart):
    faults.set_clock(start)
    service = running(**faults.environment)
    keys = [post(service) for _ in range(5)]
    faults.set_clock(0)
    if restart:
        service.stop()
        service.start()
        wait_until(service.ready, "it is ready")
    sane_now = [post(service) for _ in range(5)]
    if restart and start == HOUR:
        wait_until(lambda: "ahead of the clock" in service.said(), "the log says so")
    elif restart:
        assert "ahead of the clock" not in service.said()
    sane(service, keys + sane_now)
    assert metric(service, "energy2go_verdict_seconds_sum") < 10
    newest = service.get(f"/transactions/{sane_now[-1]}").json["created"]
    assert newest >= time.strftime("%Y-%m-%dT%H:%M", time.gmtime())


def test_steps_under_load_change_no_order(trial, faults):
    run = trial(**faults.environment).start(clients=4, pause=0.01)
    for step in (HOUR, -HOUR, 0, -time.time(), 86400, 0):
        faults.set_clock(step)
        run.more(50)
    run.finish("", [])
    assert set(run.told()) == {201}
    found = run.query(ORDER)
    assert [row[1] for row in found] == sorted((row[1] for row in found), reverse=True)
    assert all(created <= updated for _, created, updated in found)


def test_one_client_sees_its_own_order_while_the_clock_steps(running, faults):
    service = running(**faults.environment)
    load = Load(service, clients=1).start()
    for step in (HOUR, -HOUR, 0, -time.time(), 86400, 0):
        faults.set_clock(step)
        goal = len(load.accepted) + 30
        wait_until(lambda: len(load.accepted) >= goal, "more are accepted")  # noqa: B023
    load.stop()
    assert load.accepted == sorted(load.accepted)
    assert set(load.statuses) == {201}


def test_replicas_whose_clocks_differ_keep_one_order(tmp_path, programs, postgres, faults):
    run = Replicas(tmp_path, programs, postgres, 2)
    faults.set_clock(-HOUR)
    run.services[0].environment |= faults.environment
    run.start()
    # A replica whose clock is ahead may expire what another has just asked, so do not wait for verdicts.
    answers = [run.services[number % 2].post("/transactions", {"station_id": 1}) for number in range(20)]
    keys = [answer.json["id"] for answer in answers]
    for service in run.services:
        sane(service, keys)
    run.load()
    run.more(100)
    assert set(run.finish()) == {201}
    found = run.query(ORDER)
    assert [row[1] for row in found] == sorted((row[1] for row in found), reverse=True)
    assert all(created <= updated for _, created, updated in found)
