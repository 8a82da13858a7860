"""The HTTP side: one short function per route, and the service that runs behind them.

A handler's signature, docstring and decorator declare its inputs, outputs and errors (see `kit.openapi`).
"""

import asyncio
import logging
import platform
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path
from queue import Full
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

import msgspec
from prometheus_client.core import InfoMetricFamily, Metric
from swagger_ui_bundle import swagger_ui_path

import events
import models
import schemas
from kit import logs, metrics, openapi
from kit.api import Answer, Api
from kit.clock import SECOND, moment
from kit.errors import NotRead, NotRunning, Unavailable
from kit.settings import ROOT, VERSION, Settings
from kit.sql import LONGEST_READ
from kit.storage import CHECKING, Store, Unreadable, ping, sizes
from kit.threads import Threads, resolve
from ledger import JobQueue, Ledger
from mqtt_listener import Listener

log = logging.getLogger(__name__)
T = TypeVar("T")

LONGEST_WAIT = 30  # seconds
PREFERENCE = re.compile(r'([^\s=,;"]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,;"]*))?')  # RFC 7240, section 2
COUNTS_INTERVAL, LOOKS = 5, 100  # seconds in which we compute the same counts once; results that we keep
MIGRATIONS = str(ROOT / "migrations")
STATIC, SWAGGER = ROOT / "static", Path(swagger_ui_path)

app = Api("The service is not running. Start it with `gunicorn app:app`.")


class Service:
    """The database, the ledger and the MQTT client. They run while this is entered as a context manager.

    It starts without a database or a broker, too. Its coroutines run in `loop`.
    """

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop):
        self.settings, self.loop = settings, loop
        self.store = Store(settings.database_url, settings.threads + 2, MIGRATIONS)
        clock, queue = self.store.clock, JobQueue()
        self.listener = Listener(settings, queue.put, clock)
        self.changes = events.Changes(self.read, self.ready, settings.waits, loop)
        self.ledger = Ledger(settings, self.store, queue, self.listener, loop, self.changes.wake)
        self.pending: tuple[int, int | None] | None = None  # from the database, while /metrics is read
        self.sizes = dict[str, int]()  # in bytes, as well
        self.metrics = metrics.registry(app.requests, self.ledger, self.listener, self)
        self._started = ExitStack()
        self._looks = dict[Any, tuple[float, asyncio.Future[Any]]]()

    def __enter__(self) -> Self:
        self._started.callback(self.store.close)
        self._readers = Threads(self.settings.threads, self.loop)
        self._started.callback(self._readers.close)
        self._started.enter_context(self.ledger)
        self._started.enter_context(self.listener)
        app.use(self, self.settings.api_token, self.settings.api_token_old)
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect, empty the ledger's queue, and end the threads."""
        app.use(None)
        self._started.close()

    def end_waits(self) -> None:
        """End all waits and streams, because the process is about to stop. Call this in the loop."""
        self.ledger.stopping = self.store.clock.steady()
        self.changes.end()

    async def read(self, function: Callable[..., T], *values: Any, **named: Any) -> T:
        """Call a function of `models` in a thread. Raises its exceptions, or NotRead."""
        return await self._result(self._readers.call(partial(self.store.read, function, *values, **named)))

    async def look(self, function: Callable[..., T], *values: Any, keep: float = 0) -> T:
        """Like `read`, but one call serves all who ask while it runs, and then for `keep` seconds."""
        now, key = self.loop.time(), (function, values)
        for other, (until, call) in [*self._looks.items()]:
            if call.done() and (until <= now or call.exception() or len(self._looks) > LOOKS):
                del self._looks[other]
        if key not in self._looks:
            call = self._readers.call(partial(self.store.read, function, *values))
            call.add_done_callback(asyncio.Future.exception)  # perhaps all its clients have gone
            self._looks[key] = now + keep, call
        return await self._result(asyncio.shield(self._looks[key][1]))

    async def _result(self, call: asyncio.Future[T]) -> T:
        """Wait up to LONGEST_READ seconds for a call. Raises its exception, or NotRead."""
        late = self.loop.call_later(LONGEST_READ, resolve, [(call, TimeoutError())])
        try:
            return await call
        except TimeoutError:
            problem = self.store.read_problem = "it does not answer"  # until the next read succeeds
        except (Unreadable, Full) as error:
            problem = str(error)
        finally:
            late.cancel()
        log.error("the database cannot be read: %s", problem, extra={"event": "database_unreadable"})
        raise NotRead("The database cannot be read now.")

    def problems(self) -> dict[str, str]:
        """The problem of each component, '' if it works. Components in an unknown state are omitted."""
        ledger, listener = self.ledger, self.listener
        database = ledger.problem or ledger.stuck or self.store.read_problem
        problems = {"database": database if ledger.alive else "the ledger does not run"}
        problems["broker"] = listener.problem
        if listener.knows_equipment and not listener.problem:
            problems["equipment"] = "" if listener.served else "none is online"
        return problems

    def readiness(self) -> schemas.Readiness:
        """The answer of /readyz. Raises NotReady."""
        problems, listener = self.problems(), self.listener
        equipment: schemas.Equipment = listener.equipment if listener.knows_equipment else "unknown"
        readiness = schemas.Readiness(problems["database"] or "ok", problems["broker"] or "ok", equipment)
        if detail := "; ".join(f"{part}: {problem}" for part, problem in problems.items() if problem):
            raise schemas.NotReady(detail, **msgspec.structs.asdict(readiness))
        return readiness

    def ready(self) -> bytes:
        """The body of /readyz, for streams of events."""
        try:
            return msgspec.json.encode(self.readiness())
        except schemas.NotReady as refusal:
            return msgspec.json.encode(refusal.problem())

    def collect(self) -> Iterator[Metric]:
        """The metrics of clients, readiness, log and build, for Prometheus."""
        counter, gauge, clients = metrics.counter, metrics.gauge, self.changes.clients
        yield gauge("energy2go_waiters", "Requests that wait for a verdict", clients["waits"])
        yield gauge("energy2go_followers", "Clients that follow events", clients["streams"])
        ready = {part: int(not problem) for part, problem in self.problems().items()}
        yield gauge("energy2go_ready", "1 while this part of /readyz works", ready, "part")
        yield counter("energy2go_log_lines_dropped", "Log lines that were lost", logs.Background.dropped)
        if self.pending:
            count, oldest = self.pending
            age = max(0, self.store.clock.wall() - oldest) / SECOND if oldest else 0
            yield gauge("energy2go_pending_transactions", "Transactions that are PENDING", count)
            yield gauge("energy2go_oldest_pending_seconds", "Age of the oldest PENDING one, or 0", age)
        for name, size in self.sizes.items():
            text = "Size of the database, of SQLite's log, or of free space"
            yield gauge(f"energy2go_{name}_bytes", text, size)
        build = {"version": VERSION, "python": platform.python_version()}
        yield InfoMetricFamily("energy2go_build", "The versions of the service and of Python", build)


@app.post(
    "/stations",
    answers=((201, "Location", "ETag"),),
    errors=(schemas.NoMoreIds,),
    unknown="Look for the station before you create it again.",
)
async def create_station(service: Service, answer: Answer, body: schemas.NewStation) -> schemas.Station:
    """Create a station."""
    station = await service.ledger.change(models.create_station, body.description)
    answer.headers["Location"] = f"/stations/{station.id}"
    answer.headers["ETag"] = station.tag
    return station


@app.get("/stations", answers=((200, "Link"),))
async def list_stations(
    service: Service, answer: Answer, query: schemas.StationQuery
) -> schemas.StationPage:
    """List stations, newest last."""
    return schemas.StationPage(*await page(service, answer, "/stations", models.list_stations, query))


@app.get("/stations/<id>", answers=((200, "ETag"), (304, "ETag")))
async def get_station(
    service: Service, answer: Answer, id: schemas.StationId, headers: schemas.ReadHeaders
) -> schemas.Station:
    """Read one station. Its `ETag` changes with it."""
    station = await service.read(models.get_station, id)
    answer.headers["ETag"] = station.tag
    if headers.if_none_match and station.matches(headers.if_none_match):
        answer.status = 304
    return station


@app.put("/stations/<id>")
async def replace_station(
    service: Service, id: schemas.StationId, body: schemas.NewStation, headers: schemas.ChangeHeaders
) -> schemas.Station:
    """Replace a station's description."""
    # No ETag: we don't store the body literally (RFC 9110, section 9.3.4).
    return await service.ledger.change(models.change_station, id, body.description, headers.if_match)


@app.route("/stations/<id>", "PATCH", answers=((200, "ETag"),))
async def change_station(
    service: Service,
    answer: Answer,
    id: schemas.StationId,
    body: schemas.StationChange,
    headers: schemas.ChangeHeaders,
) -> schemas.Station:
    """Change a station: only the fields in the body."""
    given = id, body.description or None, headers.if_match
    station = await service.ledger.change(models.change_station, *given)
    answer.headers["ETag"] = station.tag
    return station


@app.delete("/stations/<id>", answers=((204,),), errors=(schemas.HasTransactions,))
async def delete_station(service: Service, id: schemas.StationId, headers: schemas.ChangeHeaders) -> None:
    """Delete a station that has no transactions."""
    await service.ledger.change(models.delete_station, id, headers.if_match)


@app.post(
    "/transactions",
    answers=((201, "Location"), (200, "Location", "Idempotent-Replayed")),
    errors=(schemas.KeyMalformed, schemas.NoStation, schemas.KeyUsed),
    unknown="With an Idempotency-Key, send the request again; without one, look for the transaction first.",
)
async def create_transaction(
    service: Service, answer: Answer, body: schemas.NewTransaction, headers: schemas.TransactionHeaders
) -> schemas.Transaction:
    """Start a transaction: store it as PENDING, and ask the equipment whether it is valid.

    With an `Idempotency-Key` it is safe to send this again: the same key and body get the same transaction
    as it is now, with 200.
    """
    if "," in (headers.idempotency_key or ""):
        raise schemas.KeyMalformed("Idempotency-Key: must be sent once, and have no comma.")
    draft = models.Draft(body.station_id, headers.idempotency_key)
    transaction = await service.ledger.create(draft)
    answer.headers["Location"] = f"/transactions/{transaction.id}"
    if transaction.id != draft.id:
        answer.status = 200
        answer.headers["Idempotent-Replayed"] = "true"
    return await preferred(service, answer, transaction, headers.prefer)


@app.get("/transactions", answers=((200, "Link"),))
async def list_transactions(
    service: Service, answer: Answer, query: schemas.TransactionQuery
) -> schemas.TransactionPage:
    """List transactions, newest first."""
    return schemas.TransactionPage(
        *await page(service, answer, "/transactions", models.list_transactions, query)
    )


@app.get("/transactions/counts")
async def count_transactions(service: Service, query: schemas.CountQuery) -> schemas.Counts:
    """Count transactions by the time when they were created and by their status now.

    At most 31 days and 200 steps; an answer may be 5 s old.
    """
    begin, end, step = query.times(-(-service.ledger.clock.wall() // SECOND) * SECOND)
    about = models.count_transactions, begin, end, step * SECOND, query.station_id or None
    counts = await service.look(*about, keep=COUNTS_INTERVAL)
    return schemas.Counts(moment(begin), moment(end), step, counts)


@app.get("/transactions/latest")
async def latest_transactions(service: Service, query: schemas.LatestQuery) -> schemas.Latest:
    """Read the newest transaction of each of these stations, ordered by station."""
    return schemas.Latest(await service.read(models.latest_transactions, query.station_id))


@app.get("/transactions/<id>")
async def get_transaction(
    service: Service, answer: Answer, id: schemas.TransactionId, headers: schemas.WaitHeaders
) -> schemas.Transaction:
    """Read one transaction; with `Prefer: wait=N`, once it has its verdict, or after at most 30 s."""
    transaction = await service.read(models.get_transaction, id)
    return await preferred(service, answer, transaction, headers.prefer)


@app.post(
    "/transactions/<id>/retry",
    errors=(schemas.NotExpired,),
    unknown="Send the retry again: it gets 409 if the first one was stored.",
)
async def retry_transaction(
    service: Service, answer: Answer, id: schemas.TransactionId, headers: schemas.WaitHeaders
) -> schemas.Transaction:
    """Ask about an EXPIRED transaction again: it is PENDING until its verdict or its new deadline."""
    return await preferred(service, answer, await service.ledger.retry(id), headers.prefer)


@app.get(
    "/events",
    answers=((200, "Cache-Control", "X-Accel-Buffering"),),
    errors=(schemas.TooManyClients,),
    media_type=events.MEDIA_TYPE,
    data=schemas.Transaction,
)
def follow_events(
    service: Service, answer: Answer, query: schemas.EventQuery, headers: schemas.EventHeaders
) -> AsyncGenerator[bytes, None]:
    """Follow transactions: a server-sent event for each change of a status.

    `transaction` has the transaction in its data, on one line. Each `id` is a cursor: send the last one as
    `Last-Event-ID` to go on after it without a gap. A stream begins with `begin`, or with `reset` if changes
    after your cursor may be missing: then all transactions that still exist follow. After 15 s without an
    event, `heartbeat` brings the newest cursor. `ready` has the body of `/readyz`, at the start and when it
    changes. Ignore events with other names.
    """
    given = {"query.after": query.after, "query.lastEventId": query.last_event_id}
    cursor = events.goes_on(given | {"Last-Event-ID": headers.last_event_id})
    answer.headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return service.changes.follow(cursor, query.station_id or None)


@app.get("/healthz", token=False)
async def healthz(service: Service) -> schemas.Health:
    """Check that the service is alive."""
    if not service.ledger.alive:
        raise NotRunning("The ledger's thread does not run.")
    if service.store.problem != CHECKING:  # that may take minutes
        await service.look(ping)
    return schemas.Health(VERSION)


@app.get("/readyz", token=False, errors=(schemas.NotReady,))
async def readyz(service: Service) -> schemas.Readiness:
    """Check that transactions can be stored, asked about and answered."""
    with suppress(NotRead):  # `problems` has the reason
        await service.look(ping)
    return service.readiness()


@app.get("/metrics", media_type=metrics.CONTENT_TYPE)
async def read_metrics(service: Service) -> bytes:
    """Read the service's metrics. Gauges that need the database are omitted while it is down."""
    pending, found = None, dict[str, int]()
    with suppress(NotRead):
        pending, found = await service.look(models.pending), await service.look(sizes)
    service.pending, service.sizes = pending, found  # from here on no other scrape comes in between
    return metrics.render(service.metrics)


@app.get("/openapi.json", token=False)
def openapi_document() -> msgspec.Raw:
    """Read this document."""
    return document(bool(app.config["tokens"]))


app.serve("/", "/static/<name>", *STATIC.glob("*.*"))
# The package has many more files; our page uses these.
UI = "swagger-ui.css", "swagger-ui-bundle.js", "favicon-16x16.png", "favicon-32x32.png"
app.serve("/swagger", "/swagger/<name>", *(SWAGGER / name for name in UI), *STATIC.glob("swagger/*"))


@cache
def document(token: bool) -> msgspec.Raw:
    """The OpenAPI document, built once."""
    made = openapi.document(app.declarations, schemas.INFO, schemas.GROUPS, token)
    return msgspec.Raw(msgspec.json.encode(made))


async def preferred(
    service: Service, answer: Answer, transaction: schemas.Transaction, prefer: str
) -> schemas.Transaction:
    """A stored transaction, after waiting for its verdict as `Prefer: wait=N` asks (RFC 7240)."""
    waits = (text.strip('"') for name, text in PREFERENCE.findall(prefer) if name.lower() == "wait")
    if not re.fullmatch(r"\d{1,4000}", wanted := next(waits, "")):
        return transaction
    seconds = min(int(wanted), LONGEST_WAIT)
    try:
        transaction = await service.changes.wait(transaction, seconds)
        answer.headers["Preference-Applied"] = f"wait={seconds}"
    except Unavailable:  # too many clients wait, or the database can't be read
        answer.headers["Retry-After"] = "1"
    return transaction  # it is stored, so that is the answer


async def page(
    service: Service, answer: Answer, path: str, find: Callable[..., list[T]], query: Any
) -> tuple[list[T], str | None]:
    """One page, and the URL of the next page, which is also in `Link`."""
    texts = msgspec.to_builtins(query)  # without unset fields
    filters = {name: getattr(query, name) for name in texts} | {"limit": query.limit + 1}
    found: list[Any] = await service.read(find, **filters)
    items = found[: query.limit]
    if len(found) == len(items):
        return items, None
    texts |= {name: ",".join(value) for name, value in texts.items() if isinstance(value, list)}
    following = f"{path}?{urlencode(texts | {'after': str(items[-1].id)}, safe=',:')}"
    answer.headers["Link"] = f'<{following}>; rel="next"'
    return items, following
