"""Mosquitto's command-line clients, and a broker with extra lines in its files."""

import re
import subprocess
from pathlib import Path

from programs import ROOT, Broker, Program, wait_until

QUESTIONS, VERDICTS, STATUS = (
    "EQUIPMENT/VALIDATION",
    "EQUIPMENT/VALIDATION/RESPONSE",
    "EQUIPMENT/STATUS/validator",
)


class AmendedBroker(Broker):
    """Mosquitto with the project's files and extra lines at their ends."""

    def __init__(self, folder: Path, conf: str = "", acl: str = "", **options):
        super().__init__(folder, **options)
        self.files = folder / "amended"
        (self.files / "deploy").mkdir(parents=True, exist_ok=True)
        for name, more in (
            ("deploy/mosquitto.sh", ""),
            ("mosquitto.conf", conf),
            ("deploy/mosquitto.acl", acl),
        ):
            (self.files / name).write_text((ROOT / name).read_text() + more)
        self.command[self.command.index("deploy/mosquitto.sh")] = str(self.files / "deploy/mosquitto.sh")


class Subscriber(Program):
    """A running `mosquitto_sub`, subscribed when `start` returns."""

    def __init__(self, folder: Path, broker: Broker, account: str, *options: str):
        self.name = f"{account}-{len(list(folder.glob('*.out')))}"
        # stdbuf: without it, output to a file comes in blocks.
        command = ["stdbuf", "-oL", *client("sub", broker, account), "-d", "-v", "-q", "1", *options]
        super().__init__(self.name, command, folder, {})

    def start(self):
        super().start()
        wait_until(lambda: "Subscribed" in self.output.read_text(), f"{self.name} is subscribed")
        return self

    def received(self) -> list[tuple[str, str]]:
        """The topic and payload of each message, in order of arrival."""
        return re.findall(r"^(\S*/\S*) (.*)$", self.output.read_text(errors="replace"), re.MULTILINE)

    def received_before_the_last(self) -> set[str]:
        """Wait for the message "last", and return the topics of all messages before it."""
        wait_until(lambda: any(payload == "last" for _, payload in self.received()), "the last message")
        return {topic for topic, payload in self.received() if payload != "last"}


def client(
    kind: str, broker: Broker, account: str = "", version: str = "mqttv5", **instead: str
) -> list[str]:
    """The start of a `mosquitto_pub` or `mosquitto_sub` command line, with an account or none."""
    command = [f"mosquitto_{kind}", "-V", version, "-h", "127.0.0.1", "-p", str(broker.port)]
    if account:
        known = broker.environment_of_clients | instead
        command += ["-u", known[f"{account}_USERNAME"], "-P", known[f"{account}_PASSWORD"]]
    return command


def publish(broker: Broker, account: str, topic: str, payload: str = "x", *options: str) -> str:
    """Publish and wait for the broker's answer; returns the standard error of `mosquitto_pub`."""
    command = [*client("pub", broker, account), "-q", "1", "-t", topic, *(options or ("-m", payload))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr
