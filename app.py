"""The HTTP side: one short function per route, and what it works with.

A handler's annotations say what it takes (`body`, `query`, `headers`, the ids in its path) and what it returns; its
docstring and its route's options (`status`, `errors`, `located`) are published by `openapi`.
"""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import msgspec
from bottle import Bottle, HTTPError, response, static_file

import metrics
import models
import openapi
import storage
from api import RETRY_LATER, Api
from jobs import Unavailable
from ledger import Ledger
from mqtt_listener import Listener
from schemas import (
    Health,
    NewStation,
    NewTransaction,
    Readiness,
    Station,
    StationChange,
    StationId,
    StationPage,
    StationQuery,
    Transaction,
    TransactionHeaders,
    TransactionId,
    TransactionPage,
    TransactionQuery,
    Unready,
    WaitHeaders,
)
from settings import VERSION, Settings

log = logging.getLogger(__name__)

LONGEST_WAIT = 30  # seconds
STATIC = Path(__file__).with_name("static")

app = Bottle()
app.install(Api())
ledger = Ledger()
listener = Listener(ledger)


def start(settings: Settings, stopping: Callable[[], bool] = lambda: False) -> None:
    """Start the ledger and the listener; neither a missing database nor a missing broker makes this fail."""
    app.config["api_token"] = settings.api_token
    storage.bind(settings.database_url)
    ledger.start(settings, listener, stopping=stopping)
    listener.start(settings)


def stop() -> None:
    """Disconnect, write what is still to be written, and end both threads."""
    listener.stop()
    ledger.stop()
    storage.close()


@app.post("/stations", status=201, located=True)
def create_station(body: NewStation) -> Station:
    """Create a station."""
    station = ledger.change(models.create_station, body.description)
    response.set_header("Location", f"/stations/{station.id}")
    return station


@app.get("/stations")
def list_stations(query: StationQuery) -> StationPage:
    """List stations, newest last."""
    found = models.list_stations(query.limit + 1, query.after or None)
    return StationPage(*page("/stations", query, found))


@app.get("/stations/<id>", errors=(404,))
def get_station(id: StationId) -> Station:
    """Read one station."""
    return models.get_station(id)


@app.put("/stations/<id>", errors=(404,))
def replace_station(id: StationId, body: NewStation) -> Station:
    """Replace a station's description."""
    return ledger.change(models.change_station, id, body.description)


@app.route("/stations/<id>", "PATCH", errors=(404,))
def change_station(id: StationId, body: StationChange) -> Station:
    """Change what the body names of a station."""
    if body.description is msgspec.UNSET:
        return storage.retried(models.get_station, station_id=id)
    return ledger.change(models.change_station, id, body.description)


@app.delete("/stations/<id>", status=204, errors=(404, 409))
def delete_station(id: StationId) -> None:
    """Delete a station; one that has transactions stays."""
    ledger.change(models.delete_station, id)


@app.post("/transactions", status=201, located=True)
def create_transaction(body: NewTransaction, headers: TransactionHeaders) -> Transaction:
    """Start a transaction: it is stored as PENDING, and the equipment is asked whether it is valid.

    With an `Idempotency-Key` it is safe to send this again: the same key and body get the first answer again.
    """
    transaction = ledger.create(body.station_id, headers.idempotency_key)
    response.set_header("Location", f"/transactions/{transaction.id}")

    def answer() -> Transaction:
        return models.get_transaction(transaction.id) if waited(transaction.id, headers.prefer) else transaction

    try:
        return storage.retried(answer)
    except storage.ERRORS as error:
        # It is stored, so whatever happens from here on, that is the answer.
        log.error("the database cannot be read: %s", error)
        return transaction


@app.get("/transactions")
def list_transactions(query: TransactionQuery) -> TransactionPage:
    """List transactions, newest first."""
    filters = query.status or None, query.station_id or None
    found = models.list_transactions(query.limit + 1, query.after or None, *filters)
    return TransactionPage(*page("/transactions", query, found))


@app.get("/transactions/<id>", errors=(404,))
def get_transaction(id: TransactionId, headers: WaitHeaders) -> Transaction:
    """Read one transaction; with `Prefer: wait=N`, once it has its verdict."""
    transaction = models.get_transaction(id)
    return models.get_transaction(id) if waited(id, headers.prefer) else transaction


@app.get("/healthz", token=False)
def healthz() -> Health:
    """Tell whether the service is alive."""
    if not ledger.alive:
        raise Unavailable("The ledger's thread does not run.")
    storage.check()
    return Health(VERSION)


@app.get("/readyz", token=False, problem=Unready)
def readyz() -> Readiness:
    """Tell whether the whole job can be done: stored, asked and answered."""
    database = "ok" if ledger.alive else "the ledger's thread does not run"
    try:
        storage.retried(storage.check)
    except storage.ERRORS as error:
        database = str(error).partition("\n")[0]  # PostgreSQL goes on about the statement
    state = {"database": database, "broker": listener.trouble or "ok"}
    detail = "; ".join(f"{part}: {trouble}" for part, trouble in state.items() if trouble != "ok")
    if detail:
        unready = Unready(openapi.title(503), 503, detail, equipment=listener.equipment, **state)
        raise HTTPError(503, unready, **RETRY_LATER)
    return Readiness(equipment=listener.equipment, **state)


@app.get("/metrics", produces="text/plain")
def read_metrics():
    """Read the service's metrics, as Prometheus does."""
    response.content_type = metrics.CONTENT_TYPE
    return metrics.Metrics(ledger, listener).text()


@app.get("/openapi.json", token=False)
def openapi_document() -> dict:
    """Read this document."""
    return openapi.document(app)


@app.get("/swagger", token=False, produces="text/html")
def swagger():
    """Browse the API and try it out."""
    return openapi.swagger_file("index.html")


@app.get("/swagger/<name>", token=False, produces="*/*", errors=(404,))
def swagger_file(name: str):
    """Read a file of that page."""
    return openapi.swagger_file(name)


@app.get("/", token=False, produces="text/html")
def index():
    """Watch stations and transactions, and start some."""
    return static("index.html")


@app.get("/static/<name>", token=False, produces="*/*", errors=(404,))
def static(name: str):
    """Read a file of that page."""
    if name not in os.listdir(STATIC):
        raise HTTPError(404, f"There is no file {name}.")
    # To be asked for each time, so that files of two versions never meet; what did not change is not sent again.
    return static_file(name, root=STATIC, headers={"Cache-Control": "no-cache"})


def waited(key: TransactionId, prefer: str) -> bool:
    """Hold the answer as `Prefer: wait=N` asks (RFC 7240), unless too many are held already; False if it was not."""
    wanted = re.search(r"(?:^|[,;])\s*wait\s*=\s*(\"?)(\d{1,4000})\1\s*(?:$|[,;])", prefer, re.IGNORECASE)
    seconds = min(int(wanted[2]), LONGEST_WAIT) if wanted else 0
    if not (wanted and ledger.waiters.wait(key, seconds)):
        return False
    response.set_header("Preference-Applied", f"wait={seconds}")
    return True


def page(path: str, query: StationQuery | TransactionQuery, found: list) -> tuple[list, str | None]:
    """The items of a page and the URL of the next one, from one item more than the page holds."""
    items = found[: query.limit]
    if len(found) == len(items):
        return items, None
    return items, f"{path}?{urlencode(msgspec.to_builtins(query) | {'after': str(items[-1].id)})}"
