"""A client that openapi-python-client generates from the document, with the real service."""

import importlib
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from checks import alive
from programs import Service, wait_until

TOKEN = "open-sesame"
NAME = "generated_client"


@pytest.fixture
def generated(tmp_path, monkeypatch):
    """A function that generates a package from a service's document, and imports modules of it."""

    def load(service):
        document, configuration = tmp_path / "openapi.json", tmp_path / "client.yml"
        document.write_bytes(service.get("/openapi.json").body)
        configuration.write_text("post_hooks: []\n")  # it would run ruff
        command = [
            str(Path(sys.executable).with_name("openapi-python-client")),
            "generate",
            "--meta",
            "none",
        ]
        command += ["--path", str(document), "--config", str(configuration), "--fail-on-warning"]
        run = subprocess.run(
            [*command, "--output-path", str(tmp_path / NAME)], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr
        monkeypatch.syspath_prepend(tmp_path)
        return lambda module: importlib.import_module(f"{NAME}.{module}")

    yield load
    for module in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[module]


def test_a_generated_client_waits_finds_changes_and_reads_errors(running, generated):
    service = running(API_TOKEN="")
    module = generated(service)
    models = module("models")

    def call(group, name, *arguments, **named):
        return module(f"api.{group}.{name}").sync_detailed(*arguments, client=client, **named)

    with module("client").AuthenticatedClient(service.url, TOKEN, timeout=40) as client:
        created = call("stations", "create_station", body=models.NewStation(description="Übung"))
        assert (created.status_code, created.parsed.id) == (201, 2)
        tag = created.headers["ETag"]
        order = {"body": models.NewTransaction(station_id=2), "idempotency_key": "k", "prefer": "wait=20"}
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
        page = call("transactions", "list_transactions", status=list(models.Status), station_id=2, **times)
        assert page.parsed.items == [transaction]
        found = call("stations", "list_stations", q="ÜBUNG").parsed
        assert ([one.id for one in found.items], found.next_) == ([2], None)
        assert call("transactions", "get_transaction", transaction.id).parsed == transaction

        change = models.StationChange(description="Hof")
        assert call("stations", "change_station", 2, body=change, if_match=tag).status_code == 200
        for answer, status, word in (
            (call("stations", "change_station", 2, body=change, if_match=tag), 412, "ETag"),
            (call("stations", "delete_station", 2), 409, "has transactions"),
            (call("stations", "get_station", 77), 404, "no station 77"),
            (call("stations", "create_station", body=models.NewStation(description=" ")), 422, "visible"),
            (call("transactions", "retry_transaction", transaction.id), 409, "EXPIRED"),
        ):
            assert (answer.status_code, answer.parsed.status) == (status, status)
            assert isinstance(answer.parsed, models.Problem)
            assert word in answer.parsed.detail
        ready = call("service", "readyz").parsed
        assert (ready.database, ready.equipment.to_dict()) == ("ok", {"validator": "online"})


def test_a_generated_client_retries_what_has_expired(service, generated):
    started = service(VALIDATION_RETRY="0.5", VALIDATION_TIMEOUT="1")
    started.post("/stations", {"description": "Teste"})
    key = started.post("/transactions", {"station_id": 1}).json["id"]
    wait_until(lambda: started.get(f"/transactions/{key}").json["status"] == "EXPIRED", "it has expired")
    module = generated(started)
    with module("client").AuthenticatedClient(started.url, "any") as client:
        answer = module("api.transactions.retry_transaction").sync_detailed(UUID(key), client=client)
    assert (answer.status_code, answer.parsed.status) == (200, "PENDING")
    assert answer.parsed.expires > answer.parsed.asked


def test_a_generated_client_sends_the_token(run, broker, generated):
    service = run(Service, broker, API_TOKEN=TOKEN)
    wait_until(lambda: alive(service), "it is alive")
    module = generated(service)
    statuses = []
    for token in (TOKEN, "wrong"):
        with module("client").AuthenticatedClient(service.url, token) as client:
            answer = module("api.stations.list_stations").sync_detailed(client=client)
            statuses.append((answer.status_code, type(answer.parsed).__name__))
    assert statuses == [(200, "StationPage"), (401, "Problem")]
