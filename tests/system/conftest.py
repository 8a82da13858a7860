"""The broker, the equipment and the service, ended after each test."""

import subprocess
from pathlib import Path

import pytest

from pair import Pair
from programs import Broker, Equipment, Service, wait_until
from scripted import ScriptedBroker
from trial import Trial

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
AUTHORITY = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
HERE = "DNS:localhost,IP:127.0.0.1"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Path:
    """A folder with certificates: `ours` signs `here` and `elsewhere`, `theirs` signs `stranger`.

    Each has a .pem and a .key.
    """
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "openssl.cnf").write_text("[req]\ndistinguished_name = name\n[name]\n")

    def certificate(name: str, *options: str) -> None:
        files = ["-config", "openssl.cnf", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        command = ["openssl", "req", "-x509", *KEY, *files, "-subj", f"/CN={name}", *options]
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr

    def signed(name: str, authority: str, address: str) -> None:
        by = ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"]
        certificate(name, *by, "-addext", f"subjectAltName={address}")

    certificate("ours", *AUTHORITY)
    certificate("theirs", *AUTHORITY)
    signed("here", "ours", HERE)
    signed("elsewhere", "ours", "DNS:broker.example,IP:192.0.2.1")
    signed("stranger", "theirs", HERE)
    return folder


@pytest.fixture
def broker(tmp_path, programs):
    """A real Mosquitto on a free port."""
    programs.append(Broker(tmp_path).start())
    return programs[-1]


@pytest.fixture
def equipment(tmp_path, programs, broker):
    """A function that starts the equipment, and does not wait until it is online.

    Example: `equipment(VALIDATOR_DELAY_MS="100")`
    """

    def start(**options) -> Equipment:
        programs.append(Equipment(tmp_path, broker, **options).start())
        return programs[-1]

    return start


@pytest.fixture
def service(tmp_path, programs, broker):
    """A function that starts the service and waits until it is ready, unless `ready=False`.

    Example: `service(VALIDATION_RETRY="1")`
    """

    def start(ready=True, **options) -> Service:
        programs.append(Service(tmp_path, broker, **options).start())
        if ready:
            wait_until(programs[-1].ready, "the service is ready")
        return programs[-1]

    return start


@pytest.fixture
def running(service, equipment):
    """A service with one station and an equipment that is online: `running(VALIDATION_RETRY="1")`."""

    def start(**options):
        equipment()
        started = service(**options)
        wait_until(started.online, "the equipment is online")
        assert started.post("/stations", {"description": "Teste"}).json == {"id": 1, "description": "Teste"}
        return started

    return start


@pytest.fixture
def run(tmp_path, programs):
    """A function that starts a program of this class: `run(Service, broker, API_TOKEN="x")`."""

    def run(kind: type, *arguments, **options):
        programs.append(kind(tmp_path, *arguments, **options))
        started = programs[-1].start()
        if kind is Service:
            wait_until(started.alive, "the service is alive")
        return started

    return run


@pytest.fixture
def trial(tmp_path, programs):
    """A function that makes a trial: `trial(VALIDATION_TIMEOUT="3")`."""
    return lambda **options: Trial(tmp_path, programs, **options)


@pytest.fixture
def start(tmp_path):
    """A function that starts a ledger and a listener in this process: `start(broker.port)`."""
    started = []

    def start(port: int, **options) -> Pair:
        (folder := tmp_path / f"pair-{len(started)}").mkdir()
        started.append(Pair(folder, port, **options))
        return started[-1]

    yield start
    for pair in started:
        pair.stop()


@pytest.fixture
def scripted(request):
    """A function that starts a scripted broker, which is closed after the test."""

    def start(**reactions) -> ScriptedBroker:
        broker = ScriptedBroker(**reactions).__enter__()
        request.addfinalizer(broker.__exit__)
        return broker

    return start


@pytest.fixture
def tls_broker(tmp_path, programs, certificates):
    """A function that makes a broker with one of the certificates, and does not start it."""

    def make(name: str, **options) -> Broker:
        lines = f"\ncertfile {certificates}/{name}.pem\nkeyfile {certificates}/{name}.key\n"
        programs.append(Broker(tmp_path, conf=lines, **options))
        return programs[-1]

    return make
