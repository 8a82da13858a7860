"""Faults of the broker and the equipment under load: nothing is lost, and nothing stays PENDING.

`make test` injects each fault once or twice, `make test-faults` as often as its table shows.
"""

import re
import signal
import socket
import threading

from programs import Broker, Service, wait_until
from trial import FULL, resident

SOME = 10 if FULL else 2


def pause(seconds: float) -> None:
    """Let real time pass, because the fault is about time."""
    threading.Event().wait(seconds)


# The broker


def test_the_broker_is_killed(trial, table):
    run = trial().start()
    for _ in range(SOME):
        run.note()
        run.broker.kill()
        run.more()
        run.broker.start()
        run.more()
    run.finish("broker killed (SIGKILL)", table)
    assert set(run.told()) == {201}
    assert not run.load.broken


def test_the_broker_is_stopped(trial, table):
    run = trial().start()
    run.note()
    run.broker.stop()
    run.more()
    run.broker.start()
    run.finish("broker stopped (SIGTERM)", table)
    assert set(run.told()) == {201}


def test_the_broker_is_away_for_longer_than_the_timeout(trial, table):
    run = trial(VALIDATION_TIMEOUT="3").start()
    run.note()
    run.broker.kill()
    run.more(100)
    early = resident(run.worker)
    pause(30 if FULL else 5)
    late = resident(run.worker)
    run.broker.start()
    run.finish("broker away for longer than VALIDATION_TIMEOUT", table)
    assert set(run.told()) == {201}
    assert late - early < 5, "the service's memory grows with the outage"


def test_the_broker_is_frozen_for_longer_than_the_keepalive(trial, table):
    run = trial().start()
    for _ in range(3 if FULL else 1):
        run.note()
        run.broker.send(signal.SIGSTOP)
        # Neither PUBACK nor PINGRESP comes. Which of the two is missed first depends on the moment.
        lost = re.compile("was lost|does not acknowledge")
        wait_until(lambda: lost.search(unready(run.service)), "readyz says it", 15)  # noqa: B023
        wait_until(lambda: "does not answer" in unready(run.service), "readyz says why", 15)
        run.broker.send(signal.SIGCONT)
        run.ready()
        wait_until(lambda: run.status("PENDING") < 50, "what had piled up is settled")
    run.finish("broker frozen (SIGSTOP)", table)
    assert set(run.told()) == {201}


def unready(service: Service) -> str:
    """The detail of /readyz, or "" if the service is ready."""
    return service.get("/readyz").json.get("detail", "")


def test_something_else_accepts_and_never_speaks(trial, table):
    run = trial().start()
    run.note()
    run.broker.kill()
    with socket.create_server(("127.0.0.1", run.broker.port)):
        wait_until(lambda: "does not answer" in unready(run.service), "readyz says it", 15)
        run.more()
    run.broker.start()
    run.finish("something in the broker's place never speaks", table)
    assert set(run.told()) == {201}


def test_the_broker_refuses_the_password(trial, table):
    run = trial().start()
    run.note()
    run.broker.stop()
    other = Broker(run.folder, run.broker.port, MQTT_PASSWORD="another")
    other.start()
    wait_until(lambda: "Not authorized" in unready(run.service), "readyz says it", 15)
    run.more()
    other.stop()
    run.broker.start()
    run.finish("broker refuses the password", table)
    assert set(run.told()) == {201}


def test_the_broker_refuses_the_right_to_publish(trial, table):
    run = trial(VALIDATION_TIMEOUT="3").start()
    run.note()
    acl = run.folder / "broker" / "mosquitto.acl"
    allowed = acl.read_text()
    acl.write_text(allowed.replace("topic write EQUIPMENT/VALIDATION\n", ""))
    run.broker.send(signal.SIGHUP)
    wait_until(lambda: "refuses what is published" in unready(run.service), "readyz says it", 15)
    pause(4)
    run.more()
    acl.write_text(allowed)
    run.broker.send(signal.SIGHUP)
    run.finish("broker refuses the right to publish", table)
    assert set(run.told()) == {201}


# The equipment


def test_the_equipment_is_killed(trial, table):
    run = trial().start()
    for _ in range(SOME):
        run.note()
        run.equipment.kill()
        run.more()
        run.equipment.start()
        run.more()
    run.finish("equipment killed (SIGKILL)", table)
    assert set(run.told()) == {201}


def test_the_late_verdicts_of_a_frozen_equipment_settle_what_had_expired(trial, table):
    run = trial(VALIDATION_TIMEOUT="2", VALIDATION_RETRY="1.9").start()
    run.note()
    run.equipment.send(signal.SIGSTOP)
    wait_until(lambda: run.status("EXPIRED") > 50, "some have expired")
    run.equipment.send(signal.SIGCONT)
    run.load.stop()
    wait_until(lambda: run.status("EXPIRED") + run.status("PENDING") == 0, "late verdicts settle them", 35)
    run.finish("equipment frozen (SIGSTOP) for longer than VALIDATION_TIMEOUT", table)
    assert set(run.told()) == {201}
