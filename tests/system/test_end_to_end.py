"""The whole job, with gunicorn, Mosquitto and the equipment as the processes that users start."""

import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from load import Load
from programs import ROOT, Broker, free_port, listening, wait_until


def every_transaction(service, query: str = "") -> list[dict]:
    """All transactions, page by page."""
    items, url = [], f"/transactions?limit=200{query}"
    while url:
        page = service.get(url).json
        items += page["items"]
        url = page["next"]
    return items


def pending(service) -> int:
    return len(service.get("/transactions?status=PENDING&limit=200").json["items"])


def settled(service, seconds: float = 15) -> Counter:
    """Wait until nothing is PENDING; how often each status came out."""
    wait_until(lambda: pending(service) == 0, "nothing is PENDING", seconds)
    return Counter(transaction["status"] for transaction in every_transaction(service))


@pytest.fixture
def running(service, equipment):
    """A service with one station and an equipment that is online: `running(VALIDATION_RETRY="1")`."""

    def start(**options):
        equipment()
        started = service(**options)
        wait_until(
            lambda: started.get("/readyz").json["equipment"] == {"validator": "online"}, "the equipment is online"
        )
        assert started.post("/stations", {"description": "Teste"}).json == {"id": 1, "description": "Teste"}
        return started

    return start


def test_500_transactions_from_8_clients_are_all_settled_and_none_twice(running):
    service = running()
    load = Load(service, clients=8, total=500).start()
    load.join()
    assert load.statuses == {201: 500}
    verdicts = settled(service)
    assert set(verdicts) == {"COMPLETED", "ERROR"}
    assert 0.5 <= verdicts["COMPLETED"] / 500 <= 0.7
    stored = [transaction["id"] for transaction in every_transaction(service)]
    assert len(stored) == 500
    assert set(stored) == set(load.accepted)


def test_a_verdict_does_not_change_any_more(running, equipment):
    service = running()
    load = Load(service, clients=4, total=100).start()
    load.join()
    settled(service)
    before = every_transaction(service)
    # Another equipment, which confirms nothing, cannot be asked about what is settled.
    equipment(name="other", VALIDATOR_CONFIRM_RATE="0")
    wait_until(lambda: "other" in service.get("/readyz").json["equipment"], "the other equipment is online")
    assert every_transaction(service) == before


def test_one_call_waits_for_the_verdict(running):
    service = running()
    answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    assert answer.status == 201
    assert answer.headers["Preference-Applied"] == "wait=5"
    assert answer.json["status"] in ("COMPLETED", "ERROR")
    assert service.get(answer.headers["Location"]).json == answer.json


def test_a_broker_away_for_longer_than_the_timeout_makes_nothing_expire(running, broker):
    service = running(VALIDATION_RETRY="0.5", VALIDATION_TIMEOUT="2")
    broker.stop()
    load = Load(service, clients=2, pause=0.05).start()
    away = threading.Event()
    threading.Timer(5, away.set).start()
    assert away.wait(10)
    load.stop()
    assert set(load.statuses) == {201}
    assert pending(service) > 50
    assert service.get("/transactions?status=EXPIRED").json["items"] == []
    broker.start()
    assert set(settled(service)) == {"COMPLETED", "ERROR"}


def test_the_service_starts_and_takes_transactions_without_a_broker(service, equipment, broker):
    broker.stop()
    started = service(ready=False)
    wait_until(lambda: started.get("/healthz").status == 200, "the service is alive")
    unready = started.get("/readyz")
    assert unready.status == 503
    assert "cannot be reached" in unready.json["detail"]
    started.post("/stations", {"description": "Teste"})
    answer = started.post("/transactions", {"station_id": 1})
    assert (answer.status, answer.json["status"]) == (201, "PENDING")
    equipment()
    broker.start()
    assert sum(settled(started).values()) == 1


def test_silence_expires_and_the_late_verdict_still_settles(running, equipment, programs):
    service = running(VALIDATION_RETRY="0.5", VALIDATION_TIMEOUT="1")
    (frozen,) = [program for program in programs if program.name == "validator"]
    frozen.send(signal.SIGSTOP)
    answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=10")
    assert answer.json["status"] == "EXPIRED"
    frozen.send(signal.SIGCONT)
    assert set(settled(service)) <= {"COMPLETED", "ERROR", "EXPIRED"}
    wait_until(lambda: service.get(answer.headers["Location"]).json["status"] != "EXPIRED", "the late verdict")


def test_several_equipments_share_the_work(running, equipment):
    service = running()
    equipment(name="second")
    wait_until(lambda: len(service.get("/readyz").json["equipment"]) == 2, "both are online")
    load = Load(service, clients=8, total=200).start()
    load.join()
    assert sum(settled(service).values()) == 200


def test_a_request_that_waits_is_answered_when_the_service_stops(running, programs):
    service = running()
    (equipment,) = [program for program in programs if program.name == "validator"]
    equipment.stop()
    answers = []
    waiting = threading.Thread(
        target=lambda: answers.append(service.post("/transactions", {"station_id": 1}, Prefer="wait=30"))
    )
    waiting.start()
    wait_until(lambda: pending(service) == 1, "it waits")
    assert service.stop(seconds=5) == 0
    waiting.join(5)
    assert (answers[0].status, answers[0].json["status"]) == (201, "PENDING")


def test_the_data_is_there_after_a_restart(running):
    service = running()
    answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    service.stop()
    service.start()
    assert service.get(answer.headers["Location"]).json == answer.json


def test_all_threads_that_take_the_interpreters_lock_stay_on_one_processor(running):
    service = running()
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    (worker,) = service.children
    threads = Path(f"/proc/{worker}/task").iterdir()
    allowed = [re.search(r"Cpus_allowed_list:\s*(\S+)", (thread / "status").read_text())[1] for thread in threads]
    assert len(allowed) >= 4  # gunicorn's, a request's, the ledger's, paho's
    assert len(set(allowed)) == 1
    assert int(allowed[0]) in os.sched_getaffinity(0)


def test_where_a_sandbox_forbids_that_the_service_starts_all_the_same(monkeypatch):
    def refuse(*arguments):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    runpy.run_path(str(ROOT / "gunicorn.conf.py"))["stay_on_one_processor"]()  # raises nothing


@pytest.mark.parametrize(
    ("option", "sentence"), [("--preload", "preload_app: must stay off"), ("--workers=2", "workers: must be 1")]
)
def test_gunicorn_refuses_settings_that_cannot_work(service, option, sentence):
    refused = service(ready=False)
    refused.stop()
    refused.command.append(option)
    process = subprocess.run(
        refused.command, cwd=ROOT, env=refused.environment, capture_output=True, text=True, timeout=30
    )
    assert process.returncode != 0
    assert sentence in process.stderr


def test_nothing_is_opened_by_importing(tmp_path):
    code = "import os, threading, app; print(threading.active_count(), sorted(os.listdir('/proc/self/fd')))"
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    assert process.stdout.startswith("1 ")
    assert len(process.stdout.split(",")) <= 4  # standard streams, and the listing itself
    assert list(Path(tmp_path).iterdir()) == []


def test_make_run_starts_all_three_and_ctrl_c_stops_them(tmp_path):
    service, broker = free_port(), free_port()
    command = ["make", "-s", "run", f"PYTHON={sys.executable}"]
    own = {"BIND": f"127.0.0.1:{service}", "MQTT_PORT": str(broker), "DATABASE_URL": f"sqlite:///{tmp_path}/run.db"}
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)} | own
    with (tmp_path / "out").open("w") as output:
        run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        curl = ["curl", "-sf", "--json", '{"description": "Teste"}', f"http://127.0.0.1:{service}/stations"]
        wait_until(lambda: subprocess.run(curl, capture_output=True).returncode == 0, "the service answers", 60)
        curl[3:] = ['{"station_id": 1}', "-H", "Prefer: wait=10", f"http://127.0.0.1:{service}/transactions"]
        answer = subprocess.run(curl, capture_output=True, text=True).stdout
        assert "COMPLETED" in answer or "ERROR" in answer
        said = (tmp_path / "out").read_text()
        assert f"http://127.0.0.1:{service}/swagger/" in said
        assert said.count("curl --json") == 2
    finally:
        # As Ctrl-C does: to everybody in the terminal's foreground group.
        os.killpg(run.pid, signal.SIGINT)
    run.wait(5)
    assert not listening(service)
    assert not listening(broker)


def test_the_programs_can_start_in_any_order(tmp_path, programs, equipment, service, broker):
    broker.stop()
    equipment()
    started = service(ready=False)
    wait_until(lambda: started.get("/healthz").status == 200, "the service is alive")
    started.post("/stations", {"description": "Teste"})
    started.post("/transactions", {"station_id": 1})
    assert isinstance(broker.start(), Broker)
    assert sum(settled(started).values()) == 1
