"""The HTTP side: one short function per route, the plugin that reads and writes JSON, the one shape of an error.

A handler's annotations say what it takes (`body`, `query`, `headers`, the ids in its path) and what it returns; its
docstring and its route's options (`status`, `errors`, `located`) are published by `openapi`.
"""

import hmac
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints
from urllib.parse import urlencode

import msgspec
from bottle import Bottle, HTTPError, HTTPResponse, request, response, static_file
from peewee import DatabaseError, InterfaceError

import metrics
import models
import openapi
from ledger import Ledger, Unavailable
from mqtt_listener import Listener
from schemas import (
    Health,
    NewStation,
    NewTransaction,
    Problem,
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

LARGEST_BODY = 64 * 1024  # bytes
LONGEST_WAIT = 30  # seconds
STATIC = Path(__file__).with_name("static")
GUARDS = {
    # Swagger UI draws its icons from data URLs; nothing else comes from elsewhere, and nothing is inline.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
RETRY_LATER = {"Retry-After": "5"}  # seconds
DATABASE_ERRORS = (DatabaseError, InterfaceError)

app = Bottle()
ledger = Ledger()
listener = Listener(ledger)


def start(settings: Settings, stopping: Callable[[], bool] = lambda: False) -> None:
    """Start the ledger and the listener; neither a missing database nor a missing broker makes this fail."""
    app.config["api_token"] = settings.api_token
    models.bind(settings.database_url)
    ledger.start(settings, listener, stopping=stopping)
    listener.start(settings)


def stop() -> None:
    """Disconnect, write what is still to be written, and end both threads."""
    listener.stop()
    ledger.stop()
    models.close()


def problem(error: HTTPError) -> str:
    """Every error that leaves here, as application/problem+json (RFC 9457); a 500 shows no internals."""
    guard()  # an unforeseen error passes the hook by
    response.content_type = "application/problem+json"
    if isinstance(error.body, Problem):
        return msgspec.json.encode(error.body)
    detail = "The service failed; its log says why." if error.status_code == 500 else str(error.body)
    return msgspec.json.encode(Problem(openapi.title(error.status_code), error.status_code, detail))


app.default_error_handler = problem


@app.hook("after_request")
def guard():
    """What every answer tells a browser not to do with it."""
    for name, value in GUARDS.items():
        response.set_header(name, value)


@app.hook("before_request")
def accept_a_trailing_slash():
    request.environ["PATH_INFO"] = request.environ["PATH_INFO"].rstrip("/")


@app.hook("before_request")
def refuse_what_is_not_utf_8():
    """Bottle would leave out the bytes that it cannot decode, so that a path means another."""
    try:
        request.environ["bottle.raw_path"].encode("latin1").decode()
    except UnicodeDecodeError:
        raise HTTPError(404, "Not found: the path is not UTF-8.") from None


def read(data: dict, shape: type, place: str):
    """Strings from a path, a query or headers as the types that `shape` asks for; HTTPError 422 names the field."""
    try:
        return msgspec.convert(data, shape, strict=False)
    except msgspec.ValidationError as error:
        raise HTTPError(422, named(error, place)) from None


def header(name: str) -> str | None:
    """A header of the request, a character for each byte; Bottle would fail with one that is not UTF-8."""
    return request.headers.raw(name)


def read_body(shape: type):
    """The request's JSON body; HTTPError 400, 413, 415 or 422 says what is wrong with it."""
    if request.content_type.partition(";")[0].strip().lower() != "application/json":
        raise HTTPError(415, "Content-Type: must be application/json.")
    # Straight from the server, which has undone a chunked transfer already; Bottle would undo it again.
    body = request.environ["wsgi.input"].read(LARGEST_BODY + 1)
    if len(body) > LARGEST_BODY:
        raise HTTPError(413, f"body: must not be longer than {LARGEST_BODY} bytes.")
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise HTTPError(422, named(error, "body")) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPError(400, f"body: is not JSON: {error}") from None


def named(error: msgspec.ValidationError, place: str) -> str:
    """What msgspec found, behind the name of the field in which it found it."""
    reason, _, path = str(error).partition(" - at `$")
    return f"{place}{path.rstrip('`')}: {reason}"


class Api:
    """The plugin of every route that is part of the API: token, JSON in, JSON out, errors."""

    name, api = "api", 2

    def apply(self, callback, route):
        hints = get_type_hints(callback, include_extras=True)
        status = route.config.get("status", 200)
        fields = msgspec.structs.fields(hints["headers"]) if "headers" in hints else ()
        names = [field.encode_name for field in fields]

        def handle(**path):
            if route.config.get("token", True):
                authorize()
            arguments = {name: read(text, hints[name], name) for name, text in path.items()}
            if "query" in hints:
                arguments["query"] = read(dict(request.query), hints["query"], "query")
            if "headers" in hints:
                given = {name: text for name in names if (text := header(name)) is not None}
                arguments["headers"] = read(given, hints["headers"], "headers")
            if "body" in hints:
                arguments["body"] = read_body(hints["body"])
            try:
                result = twice(callback, arguments) if request.method in ("GET", "HEAD") else callback(**arguments)
            except models.Refusal as refusal:
                later = RETRY_LATER if refusal.status == 503 else {}
                raise HTTPError(refusal.status, str(refusal), **later) from None
            except DATABASE_ERRORS as error:
                models.close()
                log.error("the database cannot be read: %s", error)
                raise HTTPError(503, "The database cannot be read now.", **RETRY_LATER) from None
            response.status = status
            if result is None:
                return None
            if isinstance(result, HTTPResponse | bytes):
                return result
            response.content_type = "application/json"
            return msgspec.json.encode(result)

        return handle


def twice(callback, arguments: dict):
    """Call what reads; and again, with another connection, if the first one turns out to be broken."""
    try:
        return callback(**arguments)
    except DATABASE_ERRORS:
        models.close()
        return callback(**arguments)


def authorize() -> None:
    """Raise HTTPError 401 unless the request bears the API_TOKEN, if there is one (RFC 6750)."""
    token = request.app.config["api_token"]
    if not token:
        return
    scheme, _, given = (header("Authorization") or "").partition(" ")
    matches = hmac.compare_digest(given.strip(" ").encode("latin1"), token.encode())
    if not (scheme.lower() == "bearer" and matches):
        raise HTTPError(401, "Authorization: must bear the API token.", **{"WWW-Authenticate": "Bearer"})


app.install(Api())


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
        return models.get_station(id)
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
        return twice(answer, {})
    except DATABASE_ERRORS as error:
        # It is stored, so whatever happens from here on, that is the answer.
        log.error("the database cannot be read: %s", error)
        models.close()
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
    models.check()
    return Health(VERSION)


@app.get("/readyz", token=False, problem=Unready)
def readyz() -> Readiness:
    """Tell whether the whole job can be done: stored, asked and answered."""
    database = "ok" if ledger.alive else "the ledger's thread does not run"
    try:
        twice(models.check, {})
    except DATABASE_ERRORS as error:
        models.close()
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
