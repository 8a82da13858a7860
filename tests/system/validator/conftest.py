"""The equipment, and brokers that ask it."""

import signal

import pytest

from programs import Broker, Equipment, wait_until
from witness import end, make, online


@pytest.fixture(scope="session")
def build(request) -> str:
    """The build that finds what C hides, unless a test asks for the one that is shipped."""
    name = getattr(request, "param", "validator-asan")
    make(name)
    return f"validator/{name}"


@pytest.fixture
def run(build, tmp_path, programs):
    """A function that starts the equipment for a broker; each one must end well, with nothing leaked."""
    started = []

    def start(broker: Broker, name="validator", is_online=False, ends=0, **options) -> Equipment:
        validator = Equipment(tmp_path, broker, build=build, name=name, **options).start()
        programs.append(validator)
        started.append((validator, ends))
        if is_online:
            wait_until(lambda: f"{name} is online" in validator.said(), f"{name} is online")
        return validator

    yield start
    for program, status in started:
        assert end(program) in (status, -signal.SIGKILL), program.said()
        assert "Sanitizer" not in program.said()
        assert "runtime error" not in program.said()


@pytest.fixture
def meets(run, scripted):
    """A function that starts the equipment with such a broker; returns it, broker and connection."""

    def meets(is_online=True, name="validator", options=None, **reactions):
        broker = scripted(**reactions)
        options = {"VALIDATOR_ID": "validator", "VALIDATOR_VERBOSE": "1"} | (options or {})
        validator = run(broker, name=name, **options)
        return validator, broker, online(broker) if is_online else broker.connection()

    return meets
