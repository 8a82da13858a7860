"""Faults of the broker and the equipment under load: nothing is lost, and nothing stays PENDING.

`make test` injects one fault of each program, `make test-faults` all of them, as often as its table shows.
"""

import signal
import socket
import threading
from functools import partial

import pytest

from brokers import SAYS, WORKS
from installation import resident
from peer import Peer
from programs import Broker, wait_until
from scripted import QUESTION, STATUS, Connection, Packet, ScriptedBroker, take_and_confirm
from trial import FULL, Fault, Trial, each, endure

SHORT = {"VALIDATION_TIMEOUT": "5"}  # seconds; some faults take longer


def says(run: Trial, *words: str) -> None:
    """Wait until /readyz says one of these."""
    said = lambda: any(word in run.service.get("/readyz").json.get("detail", "") for word in words)  # noqa: E731
    wait_until(said, f"readyz says {words}")


def kill_the_broker(run: Trial) -> None:
    run.broker.kill()
    run.more()
    run.broker.start()


def stop_the_broker(run: Trial) -> None:
    run.broker.stop()
    run.more()
    run.broker.start()


def take_the_broker_away(run: Trial) -> None:
    run.broker.kill()
    run.more(100)
    early = resident(run.worker)
    run.outlast(30 if FULL else 6)
    assert resident(run.worker) - early < 5, "the service's memory grows with the outage"
    run.broker.start()


def freeze_the_broker(run: Trial) -> None:
    run.broker.send(signal.SIGSTOP)
    # Neither PUBACK nor PINGRESP comes. Which of the two is missed first depends on the moment.
    says(run, "was lost", "does not acknowledge")
    says(run, "does not answer")
    run.broker.send(signal.SIGCONT)
    run.ready()
    wait_until(lambda: run.status("PENDING") < 50, "what had piled up is settled")


def replace_the_broker(run: Trial, words: str, other) -> None:
    """Something else is in the broker's place, and /readyz says so."""
    run.broker.stop()
    with other(run):
        says(run, words)
        run.more()
        run.outlast(6)
    run.broker.start()


def another_password(run: Trial) -> None:
    run.broker.stop()
    other = Broker(run.folder, run.broker.port, MQTT_PASSWORD="another").start()
    says(run, "Not authorized")
    run.more()
    other.stop()
    run.broker.start()


def no_right_to_publish(run: Trial) -> None:
    acl = run.folder / "broker" / "mosquitto.acl"
    allowed = acl.read_text()
    acl.write_text(allowed.replace("topic write EQUIPMENT/VALIDATION\n", ""))
    run.broker.send(signal.SIGHUP)
    says(run, "refuses what is published")
    run.outlast(6)
    acl.write_text(allowed)
    run.broker.send(signal.SIGHUP)


def work_in_another_way(run: Trial, reactions: dict) -> None:
    """The service settles everything with this broker, which plays the equipment, too."""

    def publish(connection: Connection, sent: Packet) -> None:
        if sent.topic == QUESTION:
            reactions.get("publish", take_and_confirm)(connection, sent)
        elif sent.qos:
            connection.puback(sent.id)

    run.broker.stop()
    with ScriptedBroker(port=run.broker.port, **reactions | {"publish": publish}):
        wait_until(run.service.ready, "the service is ready")
        run.more()
        wait_until(lambda: run.status("PENDING") < 10, "everything is settled")
    run.broker.start()


def kill_the_equipment(run: Trial) -> None:
    run.equipment.kill()
    run.more()
    run.equipment.start()


def flap(run: Trial) -> None:
    """`online` again and again: what is not answered expires, and late verdicts settle it."""
    run.equipment.send(signal.SIGSTOP)
    with Peer(run.broker) as peer:

        def expired() -> bool:
            threading.Event().wait(0.3)  # more often, and the questions would fill Mosquitto's queue
            peer.publish(f"{STATUS}validator", "online", retain=True)
            return run.status("EXPIRED") > 50

        wait_until(expired, "unanswered questions expire")
    late_verdicts(run)


def late_verdicts(run: Trial) -> None:
    run.load.may_post.clear()
    run.equipment.send(signal.SIGCONT)
    wait_until(lambda: run.status("EXPIRED") + run.status("PENDING") == 0, "late verdicts settle them")
    run.load.may_post.set()


def freeze_the_equipment(run: Trial) -> None:
    run.load.may_post.clear()
    wait_until(lambda: run.status("PENDING") == 0, "all are settled")
    run.equipment.send(signal.SIGSTOP)
    for _ in range(15):  # more would wait in Mosquitto, which drops them after VALIDATION_RETRY
        assert run.service.post("/transactions", {"station_id": 1}).status == 201
    expired = lambda: run.status("EXPIRED") >= 15 and not run.status("PENDING")  # noqa: E731
    wait_until(expired, "all of these have expired")
    late_verdicts(run)


def many_that_are_long_gone(run: Trial) -> None:
    """They hide no equipment that works."""
    with Peer(run.broker) as peer:
        for number in range(120):
            peer.publish(f"{STATUS}gone-{number}", "offline", retain=True)
        wait_until(lambda: run.service.get("/readyz").json["equipment"].get("gone-119"), "they are known")
        run.service.send(signal.SIGHUP)  # a new worker gets all that is retained
        wait_until(lambda: run.service.said().count("subscribed at") == 2, "it has subscribed")


def scripted(reactions: dict):
    return lambda run: ScriptedBroker(port=run.broker.port, **reactions)


def silent(run: Trial):
    return socket.create_server(("127.0.0.1", run.broker.port))


FAULTS = {
    "broker killed (SIGKILL)": Fault(kill_the_broker, 10),
    "broker stopped (SIGTERM)": Fault(stop_the_broker, 1),
    "broker away for longer than VALIDATION_TIMEOUT": Fault(take_the_broker_away, 1, options=SHORT),
    "broker frozen (SIGSTOP)": Fault(freeze_the_broker),
    "something in the broker's place never speaks": Fault(
        partial(replace_the_broker, words="does not answer", other=silent), 1, options=SHORT
    ),
    "broker refuses the password": Fault(another_password, 1),
    "broker refuses the right to publish": Fault(no_right_to_publish, 1, options=SHORT),
    **{
        name: Fault(partial(replace_the_broker, words=words, other=scripted(reactions)), options=SHORT)
        for name, (reactions, words, _) in SAYS.items()
        if words
    },
    **{name: Fault(partial(work_in_another_way, reactions=WORKS[name])) for name in WORKS},
}
OF_THE_EQUIPMENT = {
    "equipment killed (SIGKILL)": Fault(kill_the_equipment, 10),
    "equipment says `online` all the time": Fault(flap, 1, options=SHORT),
    "120 retained `offline` of equipment that is gone": Fault(many_that_are_long_gone, 1),
    "equipment frozen (SIGSTOP) for longer than VALIDATION_TIMEOUT": Fault(
        freeze_the_equipment, 1, options={"VALIDATION_TIMEOUT": "5", "VALIDATION_RETRY": "3"}
    ),
}


@pytest.mark.parametrize("name", each(FAULTS, "broker killed (SIGKILL)"))
def test_the_broker(trial, table, name):
    endure(trial(**FAULTS[name].options), name, FAULTS[name], table)


@pytest.mark.parametrize("name", each(OF_THE_EQUIPMENT, "equipment killed (SIGKILL)"))
def test_the_equipment(trial, table, name):
    fault = OF_THE_EQUIPMENT[name]
    endure(trial(**fault.options), name, fault, table)
