"""The equipment in each build, brokers of several kinds, and a client that asks."""

import os
import shutil
import signal

import pytest

from programs import Broker, Equipment, wait_until
from witness import Witness, end, make


@pytest.fixture(scope="session", params=["validator", "validator-asan"])
def build(request) -> str:
    """Each build in turn: the one that is shipped, and the one that finds what C hides."""
    make(request.param)
    return f"validator/{request.param}"


@pytest.fixture
def run(build, tmp_path, programs):
    """A function that starts the equipment for a broker; each one must end well, with nothing leaked."""
    started = []

    def start(broker: Broker, name="validator", online=False, ends=0, **options) -> Equipment:
        validator = Equipment(tmp_path, broker, build=build, name=name, **options).start()
        programs.append(validator)
        started.append((validator, ends))
        if online:
            wait_until(lambda: f"{name} is online" in validator.said(), f"{name} is online")
        return validator

    yield start
    for program, status in started:
        assert end(program) in (status, -signal.SIGKILL), program.said()
        assert "Sanitizer" not in program.said()
        assert "runtime error" not in program.said()


@pytest.fixture
def another_broker(tmp_path, programs):
    """A function that starts a Mosquitto without passwords, with these lines in its configuration."""

    def start(*lines: str, port: int | None = None) -> Broker:
        broker = Broker(tmp_path, port=port)
        lines = [
            f"listener {broker.port} 127.0.0.1",
            "allow_anonymous true",
            "log_dest stderr",
            "user root",
            *lines,
        ]
        (tmp_path / "another.conf").write_text("\n".join(lines) + "\n")
        mosquitto = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
        broker.command = [mosquitto, "-c", str(tmp_path / "another.conf")]
        programs.append(broker.start())
        return broker

    return start


@pytest.fixture
def witness(broker):
    with Witness(broker) as witness:
        yield witness


@pytest.fixture
def tls_broker(another_broker, certificates):
    """A function that starts a Mosquitto with one of the certificates."""

    def start(name: str, port: int | None = None) -> Broker:
        return another_broker(
            f"certfile {certificates}/{name}.pem", f"keyfile {certificates}/{name}.key", port=port
        )

    return start
