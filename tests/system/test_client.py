"""A client that openapi-python-client generates from the document, with the real service."""

import importlib
import subprocess
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from installation import Installation

TOKEN = "open-sesame"
NAME = "generated_client"


@pytest.fixture
def installed(tmp_path, programs):
    """The three programs."""
    installed = Installation(tmp_path, programs, API_TOKEN=TOKEN)
    for program in programs:
        program.start()
    installed.ready()
    return installed


@pytest.fixture
def module(installed, tmp_path, monkeypatch):
    """A function that imports modules of the package that was generated from the service's document."""
    document, configuration = tmp_path / "openapi.json", tmp_path / "client.yml"
    document.write_bytes(installed.service.get("/openapi.json").body)
    configuration.write_text("post_hooks: []\n")  # it would run ruff
    command = [Path(sys.executable).with_name("openapi-python-client"), "generate", "--meta", "none"]
    command += ["--path", document, "--config", configuration, "--fail-on-warning"]
    run = subprocess.run([*command, "--output-path", tmp_path / NAME], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: importlib.import_module(f"{NAME}.{name}")


@pytest.fixture
def client(installed, module):
    """A function that makes a client with this token."""
    with ExitStack() as ends:
        make = module("client").AuthenticatedClient
        yield lambda token: ends.enter_context(make(installed.service.url, token, timeout=60))


def test_a_generated_client_creates_waits_finds_changes_and_reads_errors(installed, module, client):
    models, known = module("models"), client(TOKEN)

    def call(group: str, name: str, *arguments, **named):
        return module(f"api.{group}.{name}").sync_detailed(*arguments, client=known, **named)

    station = call("stations", "create_station", body=models.NewStation(description="Übung")).parsed.id
    body = models.NewTransaction(station_id=station)
    order = {"body": body, "idempotency_key": str(uuid4()), "prefer": "wait=20"}
    first, again = (call("transactions", "create_transaction", **order) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["Idempotent-Replayed"] == "true"
    transaction = first.parsed
    assert transaction == again.parsed == call("transactions", "get_transaction", transaction.id).parsed
    assert transaction.status in (models.Status.COMPLETED, models.Status.ERROR)
    assert isinstance(transaction.id, UUID)
    assert (transaction.attempts, transaction.expires) == (1, None)
    minute = timedelta(minutes=1)
    times = {"created_from": transaction.created - minute, "created_to": transaction.created + minute}
    page = call("transactions", "list_transactions", status=list(models.Status), station_id=station, **times)
    assert page.parsed.items == [transaction]
    found = call("stations", "list_stations", q="ÜBUNG").parsed
    assert (found.items[-1].id, found.next_) == (station, None)
    ready = call("service", "readyz").parsed
    assert (ready.database, ready.equipment.to_dict()) == ("ok", {"validator": "online"})

    # It changes, and reads errors.
    tag = call("stations", "get_station", station).headers["ETag"]
    change = models.StationChange(description="Hof")
    assert call("stations", "change_station", station, body=change, if_match=tag).status_code == 200
    for answer, status, word in (
        (call("stations", "change_station", station, body=change, if_match=tag), 412, "ETag"),
        (call("transactions", "retry_transaction", transaction.id), 409, "EXPIRED"),
        (module("api.stations.list_stations").sync_detailed(client=client("wrong")), 401, "token"),
    ):
        assert (answer.status_code, answer.parsed.status) == (status, status)
        assert isinstance(answer.parsed, models.Problem)
        assert word in answer.parsed.detail
