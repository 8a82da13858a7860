"""A client that openapi-python-client generates from the document, with the real service."""

import importlib
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from installation import Installation

TOKEN = "open-sesame"
NAME = "generated_client"


@pytest.fixture(scope="module")
def shared(tmp_path_factory, programs_of_file):
    """The three programs of this file."""
    options = {"API_TOKEN": TOKEN, "VALIDATION_RETRY": "0.5", "VALIDATION_TIMEOUT": "3"}
    installed = Installation(tmp_path_factory.mktemp("client"), programs_of_file, **options)
    for program in (installed.broker, installed.equipment, installed.service):
        program.start()
    installed.ready()
    return installed


@pytest.fixture(scope="module")
def module(shared, tmp_path_factory):
    """A function that imports modules of the package that was generated from the service's document."""
    folder = tmp_path_factory.mktemp("generated")
    document, configuration = folder / "openapi.json", folder / "client.yml"
    document.write_bytes(shared.service.get("/openapi.json").body)
    configuration.write_text("post_hooks: []\n")  # it would run ruff
    command = [Path(sys.executable).with_name("openapi-python-client"), "generate", "--meta", "none"]
    command += ["--path", document, "--config", configuration, "--fail-on-warning"]
    run = subprocess.run([*command, "--output-path", folder / NAME], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield lambda name: importlib.import_module(f"{NAME}.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


@pytest.fixture
def call(shared, module):
    """A function that calls an operation: `call("stations", "get_station", 1)`."""
    with module("client").AuthenticatedClient(shared.service.url, TOKEN, timeout=60) as client:
        yield lambda group, name, *arguments, **named: module(f"api.{group}.{name}").sync_detailed(
            *arguments, client=client, **named
        )


@pytest.fixture
def models(module):
    return module("models")


@pytest.fixture
def order(call, models):
    """The arguments for a transaction of a new station."""
    station = call("stations", "create_station", body=models.NewStation(description="Übung"))
    assert station.status_code == 201
    body = models.NewTransaction(station_id=station.parsed.id)
    return {"body": body, "idempotency_key": str(uuid4()), "prefer": "wait=20"}


def test_a_generated_client_waits_and_finds(call, models, order):
    station = order["body"].station_id
    first, again = (call("transactions", "create_transaction", **order) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert first.parsed == again.parsed
    transaction = first.parsed
    assert transaction.status in (models.Status.COMPLETED, models.Status.ERROR)
    assert isinstance(transaction.id, UUID)
    assert (transaction.attempts, transaction.expires) == (1, None)
    minute = timedelta(minutes=1)
    times = {"created_from": transaction.created - minute, "created_to": transaction.created + minute}
    page = call("transactions", "list_transactions", status=list(models.Status), station_id=station, **times)
    assert page.parsed.items == [transaction]
    found = call("stations", "list_stations", q="ÜBUNG").parsed
    assert (found.items[-1].id, found.next_) == (station, None)
    assert call("transactions", "get_transaction", transaction.id).parsed == transaction
    ready = call("service", "readyz").parsed
    assert (ready.database, ready.equipment.to_dict()) == ("ok", {"validator": "online"})


def test_a_generated_client_changes_and_reads_errors(call, models, order):
    station = order["body"].station_id
    transaction = call("transactions", "create_transaction", **order).parsed
    tag = call("stations", "get_station", station).headers["ETag"]
    change = models.StationChange(description="Hof")
    assert call("stations", "change_station", station, body=change, if_match=tag).status_code == 200
    for answer, status, word in (
        (call("stations", "change_station", station, body=change, if_match=tag), 412, "ETag"),
        (call("stations", "delete_station", station), 409, "has transactions"),
        (call("stations", "get_station", 777), 404, "no station 777"),
        (call("stations", "create_station", body=models.NewStation(description=" ")), 422, "visible"),
        (call("transactions", "retry_transaction", transaction.id), 409, "EXPIRED"),
    ):
        assert (answer.status_code, answer.parsed.status) == (status, status)
        assert isinstance(answer.parsed, models.Problem)
        assert word in answer.parsed.detail


def test_a_generated_client_retries(shared, call, models, order):
    shared.equipment.send(signal.SIGSTOP)
    expired = call("transactions", "create_transaction", **order).parsed
    assert expired.status == models.Status.EXPIRED
    again = call("transactions", "retry_transaction", expired.id)
    assert (again.status_code, again.parsed.status) == (200, models.Status.PENDING)
    assert again.parsed.expires is None or again.parsed.expires > again.parsed.asked
    shared.equipment.send(signal.SIGCONT)


def test_a_generated_client_sends_the_token(shared, module):
    with module("client").AuthenticatedClient(shared.service.url, "wrong") as client:
        answer = module("api.stations.list_stations").sync_detailed(client=client)
    assert (answer.status_code, type(answer.parsed).__name__) == (401, "Problem")
