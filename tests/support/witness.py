"""What tests of the equipment share: questions, what it answered and logged, and what it costs."""

import json
import random
import signal
import subprocess
import uuid
from pathlib import Path

import pytest

from peer import Peer
from programs import ROOT, Broker, Program, wait_until
from scripted import ANSWER, QUESTION, STATUS, Connection, ScriptedBroker

GOOD_ID = "01890a5d-ac96-774b-bcce-b302099a8057"

# The build that is shipped: for what is measured. All tests with the other programs have it too.
plain_build = pytest.mark.parametrize("build", ["validator"], indirect=True)


def ids(count: int, seed: int = 7) -> list[str]:
    """The same ids in every run, so that no test passes or fails by chance."""
    numbers = random.Random(seed)
    return [str(uuid.UUID(int=numbers.getrandbits(128), version=4)) for _ in range(count)]


def ask(connection: Connection, transactions: list[str], **properties) -> None:
    """Send the questions about these ids to the equipment."""
    for transaction in transactions:
        question = json.dumps({"transaction_id": transaction, "station_id": 1}).encode()
        connection.publish(QUESTION, question, **properties)


def answers(connection: Connection) -> list[dict]:
    """The answers on this connection, in this order."""
    return [json.loads(answer.payload) for answer in connection.published(ANSWER)]


def answered(connection: Connection) -> list[str]:
    """The ids that were answered on this connection, in this order."""
    return [answer["transaction_id"] for answer in answers(connection)]


def online(broker: ScriptedBroker, number: int = 1) -> Connection:
    """The connection with this number, once the equipment has published that it is online."""
    connection = broker.connection(number)
    wait_until(lambda: connection.published(STATUS + "validator"), "it is online")
    return connection


def a_newcomer_sees(status: str, broker: Broker, name: str = "validator") -> None:
    """Wait until a new client of a real broker learns that this equipment has this status."""
    with Peer(broker, STATUS + name, account="MQTT") as peer:
        last = lambda: peer.messages and peer.messages[-1].payload == status.encode()  # noqa: E731
        wait_until(last, f"{name} is {status}")


def lines(validator: Program) -> list[str]:
    """Why it was not connected, one line each time."""
    said = validator.said().splitlines()
    return [line.partition("trying again: ")[2] for line in said if "trying again" in line]


def make(target: str) -> str:
    """Run make in the equipment's folder and return what it printed."""
    command = ["make", "-s", "--no-print-directory", "-C", "validator", target]
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def end(program: Program, number: int = signal.SIGTERM, seconds: float = 60) -> int:
    """Send a signal and return the exit status. No SIGCONT: the leak sanitizer would never end."""
    program.process.send_signal(number)
    return program.process.wait(seconds)


def stops_at_once(program: Program, number: int = signal.SIGTERM) -> bool:
    """True if the signal ends it without complaint, and before any of its patience ends."""
    return end(program, number, 8) == 0


def waits(program: Program) -> int:
    """How often it has gone to sleep until now, each time until a timer, a message or a signal."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
