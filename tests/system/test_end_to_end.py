"""The whole job, with gunicorn, Mosquitto and the equipment as the processes that users start."""

import signal
import threading
from collections import Counter

from load import Load
from programs import Broker, wait_until


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
    """Wait until nothing is PENDING; returns how many transactions have each status."""
    wait_until(lambda: pending(service) == 0, "nothing is PENDING", seconds)
    return Counter(transaction["status"] for transaction in every_transaction(service))


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
    # Other equipment, which refuses everything, is never asked about settled transactions.
    equipment(name="other", VALIDATOR_CONFIRM_RATE="0")
    wait_until(lambda: "other" in service.get("/readyz").json["equipment"], "the other equipment is online")
    assert every_transaction(service) == before


def test_one_call_waits_for_the_verdict(running):
    service = running()
    answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    assert answer.status == 201
    assert answer.headers["Preference-Applied"] == "wait=5"
    assert answer.json["status"] in ("COMPLETED", "ERROR")
    assert (answer.json["status"] == "COMPLETED") == (answer.json["reason"] == "the battery is locked in")
    assert answer.json["equipment"] == "validator"
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
    wait_until(
        lambda: service.get(answer.headers["Location"]).json["status"] != "EXPIRED", "the late verdict"
    )


def test_several_equipments_share_the_work(running, equipment):
    service = running()
    equipment(name="second")
    wait_until(lambda: len(service.get("/readyz").json["equipment"]) == 2, "both are online")
    load = Load(service, clients=8, total=200).start()
    load.join()
    assert sum(settled(service).values()) == 200


def test_equipment_that_ended_with_its_broker_is_not_called_online(service, equipment, broker):
    machine, started = equipment(), service()
    known = lambda: started.get("/readyz").json["equipment"]  # noqa: E731
    wait_until(lambda: known() == {"validator": "online"}, "the equipment is online")
    broker.kill()
    machine.kill()
    wait_until(lambda: not started.ready(), "the service has lost the broker")
    broker.start()
    wait_until(started.ready, "the service has the broker again")
    assert known() == {}


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


def test_the_programs_can_start_in_any_order(tmp_path, programs, equipment, service, broker):
    broker.stop()
    equipment()
    started = service(ready=False)
    wait_until(lambda: started.get("/healthz").status == 200, "the service is alive")
    started.post("/stations", {"description": "Teste"})
    started.post("/transactions", {"station_id": 1})
    assert isinstance(broker.start(), Broker)
    assert sum(settled(started).values()) == 1
