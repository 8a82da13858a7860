"""The broker, the equipment and the service, ended after each test."""

import os
import shutil
from pathlib import Path

import pytest

from certificates import make_certificates
from checks import alive
from pair import Pair
from programs import Broker, Equipment, Service, free_port, wait_until
from scripted import ScriptedBroker
from trial import Trial


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Path:
    """A folder with certificates: see `make_certificates`."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
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
        wait_until(
            lambda: started.get("/readyz").json["equipment"] == {"validator": "online"},
            "the equipment is online",
        )
        assert started.post("/stations", {"description": "Teste"}).json == {"id": 1, "description": "Teste"}
        return started

    return start


@pytest.fixture
def folder(tmp_path):
    """A folder that has nothing but the database in it."""
    (tmp_path / "var").mkdir()
    return tmp_path / "var"


@pytest.fixture
def started(service, folder):
    """A service with one station, on a database in `folder`."""
    started = service(DATABASE_URL=f"sqlite:///{folder}/energy2go.db")
    assert started.post("/stations", {"description": "Teste"}).status == 201
    return started


@pytest.fixture
def run(tmp_path, programs):
    """A function that starts a program of this class: `run(Service, broker, API_TOKEN="x")`."""

    def run(kind: type, *arguments, **options):
        programs.append(kind(tmp_path, *arguments, **options))
        started = programs[-1].start()
        if kind is Service:
            wait_until(lambda: alive(started), "the service is alive")
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
        started.append(Pair(tmp_path, port, **options))
        return started[-1]

    yield start
    for pair in started:
        pair.stop()


@pytest.fixture
def scripted(request):
    """A function that starts a scripted broker, which is closed after the test."""

    def start(**reactions) -> ScriptedBroker:
        broker = ScriptedBroker(**{"port": free_port()} | reactions)
        broker.__enter__()
        request.addfinalizer(lambda: broker.__exit__())
        return broker

    return start


@pytest.fixture
def mend(tmp_path, programs):
    """A function that puts a good broker and equipment in place of a scripted broker: all must settle.

    It checks that the listener says nothing within 6 s, and that nothing is stuck or lost.
    """

    def start(broker: ScriptedBroker, pair: Pair, expired: int = 0) -> None:
        broker.close()
        real = Broker(tmp_path, broker.port)
        programs.extend([real.start(), Equipment(tmp_path, real, VALIDATOR_CONFIRM_RATE="1").start()])
        online = {"validator": "online"}
        wait_until(lambda: not pair.listener.problem, "the listener is ready again", 6)
        wait_until(lambda: pair.listener.equipment == online, "the equipment is online", 6)
        pair.create()
        wait_until(lambda: pair.count("PENDING") == 0, "everything is settled", 20)
        assert pair.count("EXPIRED") <= expired
        assert pair.listener.alive
        assert pair.ledger.alive

    return start


@pytest.fixture
def service_with(tmp_path, programs):
    """A function that starts the real service with a scripted broker: `service_with(broker)`."""

    def start(broker: ScriptedBroker, **options) -> Service:
        programs.append(Service(tmp_path, broker, **options).start())
        return programs[-1]

    return start


@pytest.fixture
def running_with(tmp_path, programs):
    """A function that starts a Mosquitto with this line, the equipment and the service, and no passwords."""

    def start(line: str) -> tuple[Broker, Service]:
        broker = Broker(tmp_path)
        lines = [f"listener {broker.port} 127.0.0.1", "allow_anonymous true", "log_dest stderr", "user root"]
        (tmp_path / "limited.conf").write_text("\n".join([*lines, line]) + "\n")
        mosquitto = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        broker.command = [mosquitto, "-c", str(tmp_path / "limited.conf")]
        programs.append(broker.start())
        programs.append(Equipment(tmp_path, broker).start())
        programs.append(Service(tmp_path, broker).start())
        return broker, programs[-1]

    return start
