"""A client that openapi-python-client generates from the document, with the real service."""

import importlib
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from installation import Installation

TOKEN = "open-sesame"
NAME = "generated_client"


@pytest.fixture(scope="module")
def shared(tmp_path_factory, programs_of_file):
    """The three programs of this file."""
    options = {"API_TOKEN": TOKEN, "VALIDATION_RETRY": "0.5", "VALIDATION_TIMEOUT": "5"}
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


def test_a_generated_client_waits_finds_changes_and_reads_errors(shared, module):
    service = shared.service
    models = module("models")

    def call(group, name, *arguments, **named):
        return module(f"api.{group}.{name}").sync_detailed(*arguments, client=client, **named)

    with module("client").AuthenticatedClient(service.url, TOKEN, timeout=60) as client:
        created = call("stations", "create_station", body=models.NewStation(description="Übung"))
        assert (created.status_code, created.parsed.id) == (201, 1)
        tag = created.headers["ETag"]
        order = {"body": models.NewTransaction(station_id=1), "idempotency_key": "k", "prefer": "wait=20"}
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
        page = call("transactions", "list_transactions", status=list(models.Status), station_id=1, **times)
        assert page.parsed.items == [transaction]
        found = call("stations", "list_stations", q="ÜBUNG").parsed
        assert ([one.id for one in found.items], found.next_) == ([1], None)
        assert call("transactions", "get_transaction", transaction.id).parsed == transaction

        change = models.StationChange(description="Hof")
        assert call("stations", "change_station", 1, body=change, if_match=tag).status_code == 200
        for answer, status, word in (
            (call("stations", "change_station", 1, body=change, if_match=tag), 412, "ETag"),
            (call("stations", "delete_station", 1), 409, "has transactions"),
            (call("stations", "get_station", 77), 404, "no station 77"),
            (call("stations", "create_station", body=models.NewStation(description=" ")), 422, "visible"),
            (call("transactions", "retry_transaction", transaction.id), 409, "EXPIRED"),
        ):
            assert (answer.status_code, answer.parsed.status) == (status, status)
            assert isinstance(answer.parsed, models.Problem)
            assert word in answer.parsed.detail
        ready = call("service", "readyz").parsed
        assert (ready.database, ready.equipment.to_dict()) == ("ok", {"validator": "online"})

        shared.equipment.send(signal.SIGSTOP)
        expired = call("transactions", "create_transaction", **order | {"idempotency_key": "silence"}).parsed
        assert expired.status == models.Status.EXPIRED
        again = call("transactions", "retry_transaction", expired.id)
        assert (again.status_code, again.parsed.status) == (200, models.Status.PENDING)
        assert again.parsed.expires is None or again.parsed.expires > again.parsed.asked
        shared.equipment.send(signal.SIGCONT)


def test_a_generated_client_sends_the_token(shared, module):
    with module("client").AuthenticatedClient(shared.service.url, "wrong") as client:
        answer = module("api.stations.list_stations").sync_detailed(client=client)
    assert (answer.status_code, type(answer.parsed).__name__) == (401, "Problem")
