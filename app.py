"""The HTTP side: one short function per route, and the service that runs behind them.

A handler's signature, docstring and decorator declare what it takes, gives and refuses (see `kit.api`).
"""

import logging
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from uuid import UUID

import msgspec
from bottle import HTTPResponse, request, response
from msgspec import UNSET
from peewee import Database
from prometheus_client.core import Metric
from swagger_ui_bundle import swagger_ui_path

import models
import schemas
from kit import events, metrics, openapi, tags
from kit.api import Api, file
from kit.errors import BadRequest, NotFound, NotRead, PreconditionFailed, Unavailable, Unprocessable
from kit.events import Change, Cursor, Follower, Stream
from kit.pages import next_url
from kit.requests import preferred_wait
from kit.settings import ROOT, VERSION, Settings
from kit.storage import ERRORS, Store, check
from kit.writer import JobQueue
from ledger import Ledger
from models import Draft
from mqtt_listener import Listener
from schemas import NewStation, NewTransaction, Readiness, Station, StationId, Transaction, TransactionId

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

LONGEST_WAIT = 30  # seconds
MIGRATIONS, STATIC = str(ROOT / "migrations"), ROOT / "kit" / "static"
INFO = {
    "title": "energy2go",
    "version": VERSION,
    "description": "Starts transactions for battery stations, and tells what the equipment said.",
    "license": {"name": "MIT", "url": "https://opensource.org/license/mit"},
}
TAGS = {
    "stations": "Where transactions happen.",
    "transactions": "Each is PENDING until the equipment confirms or refuses it, or until it expires.",
    "service": "How the service is, and what it offers.",
}

app = Api("The service is not running. Start it with `gunicorn app:app`.")


class Service:
    """What runs behind the routes while it is entered as a context manager.

    It starts without a database or a broker, too. `stopping` tells whether the process is about to stop.
    """

    def __init__(self, settings: Settings, stopping: Callable[[], bool] = lambda: False):
        self.settings = settings
        self.store = Store(settings.database_url, settings.threads + 4, MIGRATIONS, models.TABLES)
        queue = JobQueue()
        self.listener = Listener(settings, queue.put)
        places = threading.BoundedSemaphore(settings.waits)
        newest = partial(self.read, models.newest_change)
        self.follower = Follower("transaction", self.changes, newest, msgspec.json.encode, places, stopping)
        self.ledger = Ledger(
            settings, self.store, queue, self.listener, None, stopping, places, self.follower.wake
        )
        self.metrics = metrics.registry(app.requests, self.ledger, self.listener, self)
        self._started = ExitStack()

    def __enter__(self) -> Self:
        self._started.enter_context(self.ledger)
        self._started.enter_context(self.listener)
        self._started.enter_context(self.follower)
        app.use(self, self.settings.api_token, self.settings.threads)
        return self

    def __exit__(self, *_: object) -> None:
        """End all streams, disconnect, write what is still to be written, and end the threads."""
        app.use(None)
        self._started.close()
        self.store.close()

    def read(self, function: Callable[Concatenate[Database, P], T], *values: P.args, **named: P.kwargs) -> T:
        """Call a function of `models` that reads; raises what it raises, or NotRead."""
        try:
            return self.store.read(function, *values, **named)
        except ERRORS as error:
            log.error("the database cannot be read: %s", error, extra={"event": "database_unreadable"})
            raise NotRead("The database cannot be read now.") from None

    def changes(self, cursor: Cursor, limit: int, station_id: int | None) -> list[Change]:
        """What changed after a cursor; raises Unavailable."""
        return self.read(models.changes, cursor, limit, station_id)

    def problems(self) -> dict[str, str]:
        """By part, why it does not work now, or nothing. A part of which nothing is known is left out."""
        store, ledger, listener = self.store, self.ledger, self.listener
        database = store.problem or store.read_problem or ledger.stuck
        problems = {"database": database if ledger.alive else "the ledger does not run"}
        problems["broker"] = listener.problem
        if listener.retains and not listener.problem:
            problems["equipment"] = "" if "online" in listener.equipment.values() else "none is online"
        return problems

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads besides the ledger's and the listener's."""
        yield metrics.gauge("energy2go_followers", "Clients that follow events", self.follower.following)
        ready = {part: int(not problem) for part, problem in self.problems().items()}
        yield metrics.gauges("energy2go_ready", "1 while this part of /readyz works", "part", ready)
        build = {"version": VERSION, "python": platform.python_version()}
        yield metrics.info("energy2go_build", "What runs here", build)


@app.post("/stations", status=201, sends=("Location", "ETag"))
def create_station(service: Service, body: NewStation) -> Station:
    """Create a station."""
    station = service.ledger.change(models.create_station, body.description)
    response.set_header("Location", f"/stations/{station.id}")
    return tagged(station)


@app.get("/stations", sends=("Link",))
def list_stations(service: Service, query: schemas.StationQuery) -> schemas.StationPage:
    """List stations, newest last."""
    return schemas.StationPage(*page(service, "/stations", models.list_stations, query))


@app.get("/stations/<id>", errors=(NotFound,), sends=("ETag",), also=((304, ("ETag",)),))
def get_station(service: Service, id: StationId, headers: schemas.ReadHeaders) -> Station:
    """Read one station. Its `ETag` changes with it."""
    station = tagged(service.read(models.get_station, id))
    if headers.if_none_match and tags.match(headers.if_none_match, station):
        response.status = 304
    return station


@app.put("/stations/<id>", errors=(NotFound, PreconditionFailed))
def replace_station(
    service: Service, id: StationId, body: NewStation, headers: schemas.ChangeHeaders
) -> Station:
    """Replace a station's description."""
    # No ETag: the station that we store is not literally the body (RFC 9110, section 9.3.4).
    return service.ledger.change(models.change_station, id, body.description, headers.if_match)


@app.route("/stations/<id>", "PATCH", errors=(NotFound, PreconditionFailed), sends=("ETag",))
def change_station(
    service: Service, id: StationId, body: schemas.StationChange, headers: schemas.ChangeHeaders
) -> Station:
    """Change those fields of a station that the body names."""
    if body.description is UNSET:
        station = service.read(models.get_station, id)
        tags.require(headers.if_match, station)
    else:
        station = service.ledger.change(models.change_station, id, body.description, headers.if_match)
    return tagged(station)


@app.delete("/stations/<id>", status=204, errors=(NotFound, schemas.HasTransactions, PreconditionFailed))
def delete_station(service: Service, id: StationId, headers: schemas.ChangeHeaders) -> None:
    """Delete a station that has no transactions."""
    service.ledger.change(models.delete_station, id, headers.if_match)


@app.post(
    "/transactions",
    status=201,
    errors=(schemas.NoStation, schemas.KeyUsed),
    sends=("Location", "Preference-Applied", "Retry-After"),
    also=((200, ("Idempotent-Replayed", "Location", "Preference-Applied", "Retry-After")),),
)
def create_transaction(
    service: Service, body: NewTransaction, headers: schemas.TransactionHeaders
) -> Transaction:
    """Start a transaction: store it as PENDING, and ask the equipment whether it is valid.

    With an `Idempotency-Key` it is safe to send this again: the same key and body get the same transaction
    as it is now, with 200.
    """
    if "," in (headers.idempotency_key or ""):
        raise BadRequest("Idempotency-Key: must be sent once, and have no comma.")
    draft = Draft(body.station_id, headers.idempotency_key)
    transaction = service.ledger.create(draft)
    response.set_header("Location", f"/transactions/{transaction.id}")
    if transaction.id != draft.id:
        response.status = 200
        response.set_header("Idempotent-Replayed", "true")
    return stored(service, transaction, headers.prefer)


@app.get("/transactions", sends=("Link",))
def list_transactions(service: Service, query: schemas.TransactionQuery) -> schemas.TransactionPage:
    """List transactions, newest first."""
    return schemas.TransactionPage(*page(service, "/transactions", models.list_transactions, query))


@app.get("/transactions/<id>", errors=(NotFound,), sends=("Preference-Applied", "Retry-After"))
def get_transaction(service: Service, id: TransactionId, headers: schemas.WaitHeaders) -> Transaction:
    """Read one transaction; with `Prefer: wait=N`, once it has its verdict."""
    transaction = service.read(models.get_transaction, id)
    return waited(service, id, headers.prefer) or transaction


@app.post(
    "/transactions/<id>/retry",
    errors=(NotFound, schemas.NotExpired),
    sends=("Preference-Applied", "Retry-After"),
)
def retry_transaction(service: Service, id: TransactionId, headers: schemas.WaitHeaders) -> Transaction:
    """Ask about an EXPIRED transaction again: it is PENDING until its verdict or its new deadline."""
    return stored(service, service.ledger.retry(id), headers.prefer)


@app.get("/events", media_type=events.MEDIA_TYPE, sends=("Cache-Control",))
def follow_events(service: Service, query: schemas.EventQuery, headers: schemas.EventHeaders) -> Stream:
    """Follow transactions: a server-sent event for each change of a status.

    The event `transaction` has the transaction in its data, on one line. Its `id` is a cursor: send the last
    one as `Last-Event-ID` to go on after it without a gap. Every 15 seconds there is a comment.
    """
    cursor = None
    for name, text in (("query.after", query.after), ("Last-Event-ID", headers.last_event_id)):
        if text:
            try:
                cursor = events.from_text(text)
            except ValueError as error:
                raise Unprocessable(f"{name}: {error}.") from None
    response.set_header("Cache-Control", "no-store")
    connection = request.environ.get("gunicorn.socket")
    return service.follower.follow(cursor, query.station_id or None, app.slot, connection)


@app.get("/healthz", token=False, slot=False)
def healthz(service: Service) -> schemas.Health:
    """Tell whether the service is alive."""
    if not service.ledger.alive:
        raise Unavailable("The ledger's thread does not run.")
    service.read(check)
    return schemas.Health(VERSION)


@app.get("/readyz", token=False, slot=False, errors=(schemas.NotReady,))
def readyz(service: Service) -> Readiness:
    """Tell whether the whole job can be done: stored, asked and answered."""
    with suppress(*ERRORS):  # `read_problem` says it
        service.store.read(check)
    problems, listener = service.problems(), service.listener
    equipment: schemas.Equipment = listener.equipment if listener.retains else "unknown"
    readiness = Readiness(problems["database"] or "ok", problems["broker"] or "ok", equipment)
    if detail := "; ".join(f"{part}: {problem}" for part, problem in problems.items() if problem):
        raise schemas.NotReady(detail, readiness)
    return readiness


@app.get("/metrics", slot=False, media_type=metrics.CONTENT_TYPE)
def read_metrics(service: Service) -> bytes:
    """Read the service's metrics, as Prometheus does. What the database does not tell now is left out."""
    return metrics.text(service.metrics)


@app.get("/openapi.json", token=False)
def openapi_document() -> dict[str, Any]:
    """Read this document."""
    return openapi.document(app, INFO, TAGS)


# Pages, for people


@app.get("/", token=False, page=True)
def index() -> HTTPResponse:
    """Watch stations and transactions, and start some."""
    return static("index.html")


@app.get("/static/<name>", token=False, page=True)
def static(name: str) -> HTTPResponse:
    """A file of the page."""
    return file(name, STATIC)


@app.get("/swagger", token=False, page=True)
def swagger() -> HTTPResponse:
    """Swagger UI: browse the API and try it out."""
    return swagger_file("index.html")


@app.get("/swagger/<name>", token=False, page=True)
def swagger_file(name: str) -> HTTPResponse:
    """A file of Swagger UI: ours if there is one of that name, else the package's."""
    return file(name, STATIC / "swagger", swagger_ui_path)


def tagged(station: Station) -> Station:
    """The station, with its tag in the answer."""
    response.set_header("ETag", tags.of(station))
    return station


def stored(service: Service, transaction: Transaction, prefer: str) -> Transaction:
    """A transaction that was just stored, after waiting as `Prefer: wait=N` asks."""
    try:
        return waited(service, transaction.id, prefer) or transaction
    except Unavailable:
        return transaction  # it is stored, so that is the answer


def waited(service: Service, transaction_id: UUID, prefer: str) -> Transaction | None:
    """The transaction after waiting as `Prefer: wait=N` asks (RFC 7240); None without a wait."""
    wanted = preferred_wait(prefer)
    if wanted is None:
        return None
    seconds = min(wanted, LONGEST_WAIT)
    if not service.ledger.wait(transaction_id, seconds, app.no_slot):
        response.set_header("Retry-After", "1")  # too many requests wait already
        return None
    transaction = service.read(models.get_transaction, transaction_id)
    response.set_header("Preference-Applied", f"wait={seconds}")
    return transaction


def page(
    service: Service, path: str, find: Callable[..., list[T]], query: Any
) -> tuple[list[T], str | None]:
    """The items of a page of what a query finds, and the URL of the next page, which `Link` tells too."""
    filters = {name: value for name, value in msgspec.structs.asdict(query).items() if value is not UNSET}
    found: list[Any] = service.read(find, **filters | {"limit": query.limit + 1})
    items = found[: query.limit]
    if len(found) == len(items):
        return items, None
    following = next_url(path, query, items[-1].id)
    response.set_header("Link", f'<{following}>; rel="next"')
    return items, following
