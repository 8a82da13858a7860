"""What tests of the equipment share: a client that asks, questions to the program, and its log."""

import json
import os
import random
import re
import signal
import subprocess
import uuid
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from peer import Peer
from programs import ROOT, Broker, Program, wait_until
from scripted import ANSWER, QUESTION, STATUS, Connection, ScriptedBroker

GOOD_ID = "01890a5d-ac96-774b-bcce-b302099a8057"

# The build that is shipped: for tests that measure something, and for one of each kind.
plain_build = pytest.mark.parametrize("build", ["validator"], indirect=True)
both_builds = pytest.mark.parametrize("build", ["validator", "validator-asan"], indirect=True)


class Witness(Peer):
    """Asks with the account of the service and notes what the equipment publishes."""

    def __init__(self, broker: Broker):
        super().__init__(broker, ANSWER, STATUS + "+", account="MQTT")
        self.qos = 1
        self.client.reconnect_delay_set(1, 1)

    @property
    def answers(self) -> list:
        return [message for message in self.messages if message.topic == ANSWER]

    def ask(self, payload, **properties) -> None:
        """Send a question: an id becomes a whole one, a dict JSON; properties have paho's names."""
        if isinstance(payload, str):
            payload = {"transaction_id": payload, "station_id": 1}
        if isinstance(payload, dict):
            payload = json.dumps(payload).encode()
        sent = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(sent, name, value)
        self.client.publish(QUESTION, payload, self.qos, properties=sent)

    def answer(self, number: int = 1):
        """The answer with this number once it is there."""
        wait_until(lambda: len(self.answers) >= number, f"answer {number}")
        return self.answers[number - 1]

    def verdicts(self, ids: list[str]) -> dict:
        """Ask for each id and return the new answers, status by id."""
        before = len(self.answers)
        for transaction in ids:
            self.ask(transaction)
        self.answer(before + len(ids))
        new = [json.loads(answer.payload) for answer in self.answers[before:]]
        return {answer["transaction_id"]: answer["status"] for answer in new}

    def sees(self, status: str, name: str = "validator") -> None:
        """Wait until this is the last word on this equipment."""

        def last() -> str:
            words = [message.payload for message in self.messages if message.topic == STATUS + name]
            return words[-1].decode() if words else ""

        wait_until(lambda: last() == status, f"{name} is {status}")


def ids(count: int, seed: int = 7) -> list[str]:
    """The same ids in every run, so that no test passes or fails by chance."""
    numbers = random.Random(seed)
    return [str(uuid.UUID(int=numbers.getrandbits(128), version=4)) for _ in range(count)]


def a_newcomer_sees(status: str, broker: Broker, name: str = "validator") -> None:
    """The status is retained."""
    with Witness(broker) as newcomer:
        newcomer.sees(status, name)


def ignored(validator: Program) -> int:
    """How many payloads it ignored, by its lines and by the number of lines that were left out."""
    left_out = sum(map(int, re.findall(r"\((\d+) lines before this one", validator.said())))
    return left_out + validator.said().count("ignored, ")


def make(target: str) -> str:
    """Run make in the equipment's folder and return what it printed."""
    command = ["make", "-s", "--no-print-directory", "-C", "validator", target]
    done = subprocess.run(
        command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def end(program: Program, number: int = signal.SIGTERM, seconds: float = 60) -> int:
    """Send a signal and return the exit status. No SIGCONT: the leak sanitizer would never end."""
    program.process.send_signal(number)
    return program.process.wait(seconds)


def stops_at_once(program: Program, number: int = signal.SIGTERM) -> bool:
    """True if the signal ends it without complaint, and before any of its patience ends."""
    return end(program, number, 8) == 0


def connections(program: Program, state: str) -> list:
    """Its IPv4 connections in this state: "01" established, "02" being made (see proc(5), net/tcp)."""
    own = {os.readlink(entry) for entry in Path(f"/proc/{program.pid}/fd").iterdir()}
    rows = [line.split() for line in Path(f"/proc/{program.pid}/net/tcp").read_text().splitlines()[1:]]
    return [row for row in rows if row[3] == state and f"socket:[{row[9]}]" in own]


def waits(program: Program) -> int:
    """How often it has gone to sleep until now, each time until a timer, a message or a signal."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def ticks(program: Program) -> int:
    """The CPU it has used until now, in hundredths of a second."""
    return sum(map(int, Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def ask(connection: Connection, transactions: list[str], **properties) -> None:
    """Send the questions about these ids to the equipment."""
    for transaction in transactions:
        question = json.dumps({"transaction_id": transaction, "station_id": 1}).encode()
        connection.publish(QUESTION, question, **properties)


def answered(connection: Connection) -> list[str]:
    """The ids that were answered on this connection, in this order."""
    return [json.loads(answer.payload)["transaction_id"] for answer in connection.published(ANSWER)]


def online(broker: ScriptedBroker, number: int = 1) -> Connection:
    """The connection with this number, once the equipment has published that it is online."""
    connection = broker.connection(number)
    wait_until(lambda: connection.published(STATUS + "validator"), "it is online")
    return connection


def lines(validator: Program) -> list[str]:
    """Why it was not connected, one line each time."""
    return [
        line.partition("trying again: ")[2]
        for line in validator.said().splitlines()
        if "trying again" in line
    ]
