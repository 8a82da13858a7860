"""The whole job, with gunicorn, Mosquitto and the equipment as the processes that users start."""

import signal

import pytest

from installation import ONLINE, Installation, every_transaction
from load import Load
from programs import Broker, Equipment, wait_until

SETTLED = {"COMPLETED", "ERROR"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory, programs_of_file):
    """The three programs for those tests that end none of them."""
    return Installation(tmp_path_factory.mktemp("whole"), programs_of_file).start()


def settled(service, station: int = 1) -> list[dict]:
    """All transactions of a station, once nothing is PENDING."""
    pending = f"/transactions?station_id={station}&status=PENDING"
    wait_until(lambda: service.get(pending).json["items"] == [], "nothing is PENDING")
    return every_transaction(service, f"&station_id={station}")


def test_500_transactions_from_8_clients_are_all_settled_and_none_twice(shared):
    station = shared.station()
    load = Load(shared.service, clients=8, total=500, station=station).start()
    load.join()
    assert load.statuses == {201: 500}
    found = settled(shared.service, station)
    verdicts = [transaction["status"] for transaction in found]
    assert set(verdicts) == SETTLED
    assert 0.5 <= verdicts.count("COMPLETED") / 500 <= 0.7
    assert sorted(transaction["id"] for transaction in found) == sorted(load.accepted)


def test_other_equipment_shares_the_work_and_changes_no_verdict(shared, programs, tmp_path):
    service, station = shared.service, shared.station()
    Load(service, clients=4, total=100, station=station).start().join()
    before = settled(service, station)
    programs.append(Equipment(tmp_path, shared.broker, name="other", VALIDATOR_CONFIRM_RATE="0").start())
    wait_until(lambda: len(service.get("/readyz").json["equipment"]) == 2, "both are online")
    Load(service, clients=8, total=200, station=shared.station()).start().join()
    answered_by = [transaction["equipment"] for transaction in settled(service, station + 1)]
    assert len(answered_by) == 200
    assert {*answered_by} == {"validator", "other"}
    assert settled(service, station) == before


def test_the_programs_can_start_in_any_order(service, equipment, broker):
    """The service takes transactions without a broker, and asks once there is one."""
    broker.stop()
    started = service(ready=False)
    wait_until(started.alive, "the service is alive")
    unready = started.get("/readyz")
    assert unready.status == 503
    wait_until(lambda: "cannot be reached" in started.get("/readyz").json["detail"], "it says why")
    started.post("/stations", {"description": "Teste"})
    answer = started.post("/transactions", {"station_id": 1})
    assert (answer.status, answer.json["status"]) == (201, "PENDING")
    equipment()
    broker.start()
    assert {transaction["status"] for transaction in settled(started)} <= SETTLED


def test_silence_expires_and_the_late_verdict_still_settles(running, programs):
    service = running(VALIDATION_RETRY="0.5", VALIDATION_TIMEOUT="1")
    (frozen,) = [program for program in programs if program.name == "validator"]
    frozen.send(signal.SIGSTOP)
    answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    assert answer.json["status"] == "EXPIRED"
    frozen.send(signal.SIGCONT)
    late = lambda: service.get(answer.headers["Location"]).json["status"] in SETTLED  # noqa: E731
    wait_until(late, "the late verdict")


def test_equipment_that_ended_with_its_broker_is_not_called_online(service, equipment, broker):
    machine, started = equipment(), service()
    known = lambda: started.get("/readyz").json["equipment"]  # noqa: E731
    wait_until(lambda: known() == ONLINE, "the equipment is online")
    broker.kill()
    machine.kill()
    wait_until(lambda: not started.ready(), "the service has lost the broker")
    assert known() == {}
    broker.start()
    wait_until(started.ready, "the service has the broker again")
    assert known() == {}
    assert "none is online" in started.get("/readyz").json["detail"]
    machine.start()
    wait_until(lambda: started.get("/readyz").status == 200, "the equipment is back")


def test_a_limited_mosquitto(tmp_path, programs):
    limits = "\nretain_available false\nmax_inflight_messages 1\nmax_packet_size 600\n"
    broker = Broker(tmp_path, conf=limits)
    limited = Installation(tmp_path, programs, broker)
    for program in (broker, limited.equipment, limited.service):
        program.start()
    service = limited.service
    wait_until(
        lambda: service.get("/readyz").json["equipment"] == "unknown" and service.ready(), "all works"
    )
    station = limited.station()
    for _ in range(60):
        assert service.post("/transactions", {"station_id": station}).status == 201
    assert {transaction["status"] for transaction in settled(service)} == SETTLED
