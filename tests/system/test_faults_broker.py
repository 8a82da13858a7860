"""Faults of the broker and the equipment under load: nothing is lost, and nothing stays PENDING.

`make test` injects one fault of each program, `make test-faults` all of them, as often as its table shows.
"""

import contextlib
import signal
import threading
from functools import partial

import pytest

from brokers import SAYS
from installation import resident
from peer import Peer
from programs import Broker, wait_until
from scripted import STATUS, ScriptedBroker
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


def take_the_broker_away(run: Trial) -> None:
    run.broker.stop()
    run.more(100)
    early = resident(run.service.worker)
    run.outlast(30 if FULL else 6)
    assert resident(run.service.worker) - early < 5, "the service's memory grows with the outage"
    run.broker.start()


def freeze_the_broker(run: Trial) -> None:
    run.broker.send(signal.SIGSTOP)
    # Neither PUBACK nor PINGRESP comes. Which of the two is missed first depends on the moment.
    says(run, "was lost", "does not acknowledge")
    says(run, "does not answer")
    run.broker.send(signal.SIGCONT)
    run.ready()
    wait_until(lambda: run.status("PENDING") < 50, "what had piled up is settled")


@contextlib.contextmanager
def another_password(run: Trial):
    other = Broker(run.folder, run.broker.port, MQTT_PASSWORD="another").start()
    yield
    other.stop()


def scripted(name: str):
    return lambda run: ScriptedBroker(run.broker.port, **SAYS[name][0])


def replace_the_broker(run: Trial, words: str, other) -> None:
    """Something else is in the broker's place, and /readyz says so."""
    run.broker.stop()
    with other(run):
        says(run, words)
        run.more()
        run.outlast(6)
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
    run.load.may_post.clear()
    run.equipment.send(signal.SIGCONT)
    wait_until(lambda: run.status("EXPIRED") + run.status("PENDING") == 0, "late verdicts settle them")
    run.load.may_post.set()


# Of the brokers that misbehave, those that take longest; test_brokers.py meets them all.
STRANGERS = "SUBSCRIBE is never answered", "accepts and never speaks", "nothing is acknowledged"
FAULTS = {
    "broker killed (SIGKILL)": Fault(kill_the_broker, 10),
    "broker away for longer than VALIDATION_TIMEOUT": Fault(take_the_broker_away, 1, options=SHORT),
    "broker frozen (SIGSTOP)": Fault(freeze_the_broker),
    "broker refuses the password": Fault(
        partial(replace_the_broker, words="Not authorized", other=another_password), 1, options=SHORT
    ),
    "broker refuses the right to publish": Fault(no_right_to_publish, 1, options=SHORT),
    **{
        name: Fault(partial(replace_the_broker, words=SAYS[name][1], other=scripted(name)), options=SHORT)
        for name in STRANGERS
    },
    "equipment killed (SIGKILL)": Fault(kill_the_equipment, 10),
    "equipment says `online` all the time": Fault(flap, 1, options=SHORT),
}


@pytest.mark.parametrize("name", each(FAULTS, "broker killed (SIGKILL)", "equipment killed (SIGKILL)"))
def test_the_broker_and_the_equipment(trial, table, name):
    endure(trial(**FAULTS[name].options), name, FAULTS[name], table)
