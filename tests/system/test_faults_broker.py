"""Faults of the broker and the equipment under load: nothing is lost, and nothing stays PENDING.

`make test` injects each fault once or twice, `make test-faults` as often as its table shows.
"""

import re
import signal
import socket
import threading

import pytest

from peer import Peer
from programs import Broker, Service, wait_until
from scripted import (
    CONNACK,
    QUESTION,
    STATUS,
    Connection,
    Packet,
    ScriptedBroker,
    connack,
    hang_up,
    nothing,
    packet,
    puback,
    sends,
    suback,
    take_and_confirm,
)
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


SAYS = {
    "SUBACK refuses": ({"subscribe": suback(0x87)}, "refuses the subscription"),
    "SUBSCRIBE is never answered": ({"subscribe": nothing}, "does not answer SUBSCRIBE"),
    "connection closed on SUBSCRIBE": ({"subscribe": hang_up}, "instead of answering SUBSCRIBE"),
    "connection closed after CONNACK": (
        {"connect": connack(), "subscribe": hang_up},
        "instead of answering",
    ),
    "CONNACK of MQTT 3.1.1": ({"connect": sends(packet(CONNACK, b"\0\5"))}, "not MQTT 5"),
    "an HTTP server answers": ({"connect": sends(b"HTTP/1.1 400 Bad Request\r\n\r\n")}, "not MQTT 5"),
    "CONNACK: no shared subscriptions": (
        {"connect": connack(SharedSubscriptionAvailable=0)},
        "does not offer shared subscriptions",
    ),
    "PUBACK: quota exceeded": ({"publish": puback(0x97)}, "refuses what is published"),
    "nothing is acknowledged": ({"publish": nothing}, "does not acknowledge what is published"),
}


@pytest.mark.parametrize("fault", SAYS)
def test_a_broker_that_says_something_else(trial, table, fault):
    run = trial(VALIDATION_TIMEOUT="3").start()
    reactions, sentence = SAYS[fault]
    for _ in range(3 if FULL else 1):
        run.note()
        run.broker.stop()
        with ScriptedBroker(port=run.broker.port, **reactions):
            wait_until(lambda: sentence in unready(run.service), "readyz says it", 15)
            run.more()
            pause(4)  # longer than the timeout
        run.broker.start()
        run.ready()
    run.finish(fault, table)
    assert set(run.told()) == {201}


WORKS = {
    "SUBACK with no code": {"subscribe": suback()},
    "SUBACK with one code": {"subscribe": suback(1)},
    "SUBACK with three codes": {"subscribe": suback(1, 1, 1)},
    "CONNACK: Receive Maximum 1": {"connect": connack(ReceiveMaximum=1)},
    "CONNACK: Receive Maximum 10": {"connect": connack(ReceiveMaximum=10)},
    "CONNACK: Maximum QoS 0": {"connect": connack(MaximumQoS=0)},
    "CONNACK: no retain": {"connect": connack(RetainAvailable=0)},
    "CONNACK: no wildcards": {"connect": connack(WildcardSubscriptionAvailable=0)},
}


def either(connection: Connection, sent: Packet) -> None:
    """Confirm a question, and take what the equipment publishes."""
    if sent.topic == QUESTION:
        take_and_confirm(connection, sent)
    elif sent.qos:
        connection.puback(sent.id)


@pytest.mark.parametrize("limit", WORKS)
def test_a_broker_that_works_in_another_way(trial, table, limit):
    """The service settles everything with it, too; it plays the equipment itself."""
    run = trial().start()
    for _ in range(3 if FULL else 1):
        run.note()
        run.broker.stop()
        with ScriptedBroker(port=run.broker.port, **{"publish": either} | WORKS[limit]):
            wait_until(run.service.ready, "the service is ready", 15)
            run.more()
            wait_until(lambda: run.status("PENDING") < 10, "everything is settled", 15)
        run.broker.start()
        run.ready()
    run.finish(limit, table)
    assert set(run.told()) == {201}


# The equipment


def test_equipment_flaps(trial, table):
    """`online` every 0.3 s: what is not answered expires, and late verdicts settle it."""
    run = trial(VALIDATION_TIMEOUT="3").start()
    run.note()
    run.equipment.send(signal.SIGSTOP)
    with Peer(run.broker) as peer:

        def flap() -> bool:
            pause(0.3)
            peer.publish(f"{STATUS}validator", "online", retain=True)
            return run.status("EXPIRED") > 50

        wait_until(flap, "unanswered questions expire", 10)
    run.equipment.send(signal.SIGCONT)
    run.load.stop()
    wait_until(lambda: run.status("EXPIRED") + run.status("PENDING") == 0, "late verdicts settle them", 35)
    run.finish("equipment says `online` every 0.3 s", table)
    assert set(run.told()) == {201}


def test_a_hundred_that_are_long_gone_hide_no_equipment_that_works(trial, table):
    run = trial().start()
    run.note()
    with Peer(run.broker) as peer:
        for number in range(120):
            peer.publish(f"{STATUS}gone-{number}", "offline", retain=True)
        wait_until(lambda: run.service.get("/readyz").json["equipment"].get("gone-119"), "they are known")
        run.service.send(signal.SIGHUP)  # a new worker gets all that is retained
        wait_until(lambda: run.service.said().count("subscribed at") == 2, "it has subscribed")
        run.ready(6)
        run.more()
    run.finish("120 retained `offline` of equipment that is gone", table)
    assert set(run.told()) == {201}


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
    run = trial(VALIDATION_TIMEOUT="4", VALIDATION_RETRY="3").start()
    run.note()
    run.load.stop()
    wait_until(lambda: run.status("PENDING") == 0, "all are settled")
    run.equipment.send(signal.SIGSTOP)
    # No more than Mosquitto sends without PUBACK. It would drop others after VALIDATION_RETRY.
    for _ in range(15):
        assert run.service.post("/transactions", {"station_id": 1}).status == 201
    wait_until(lambda: run.status("EXPIRED") == 15, "all of these have expired")
    run.equipment.send(signal.SIGCONT)
    wait_until(lambda: run.status("EXPIRED") + run.status("PENDING") == 0, "late verdicts settle them", 35)
    run.finish("equipment frozen (SIGSTOP) for longer than VALIDATION_TIMEOUT", table)
    assert set(run.told()) == {201}
