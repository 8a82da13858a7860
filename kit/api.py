"""A Bottle app whose routes declare their inputs, outputs and errors, and that reads and writes by this.

Bottle finds the route and runs the hooks; then the app calls the handler, which may wait.
"""

import asyncio
import inspect
import logging
import mimetypes
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from bottle import Bottle, HTTPError, Route, request

from kit import metrics, requests
from kit.errors import KeyNotTaken, MethodNotAllowed, NothingHere, NotRunning, OutcomeUnknown, Refusal
from kit.logs import REQUEST, REQUEST_ID, begin_request
from kit.openapi import Declaration
from kit.requests import header

log = logging.getLogger(__name__)

GONE = 499  # the status by which we count a request whose client has gone
ANSWER = "kit.answer"  # the key in the environment for the answer, or the call to the handler
PROBES = ("/healthz", "/readyz")  # answer 503 again and again while something is wrong
READERS = {"query": requests.read_query, "headers": requests.read_headers, "body": requests.read_body}
SECURITY_HEADERS = {
    # Swagger UI draws its icons from data URLs. Everything else comes from here, without inline code.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Answer:
    """An answer. A handler may set its status and headers; its result becomes the body.

    A stream goes on with `more` after its body, and must be closed. `detail` is for the log.
    """

    def __init__(self, status: int, body: bytes = b"", media_type: str = "", detail: str = ""):
        self.status, self.body, self.detail = status, body, detail
        self.headers = {"Content-Type": media_type} if media_type else {}
        self.more: AsyncGenerator[bytes, None] | None = None


class Api(Bottle):  # type: ignore[misc]  # Bottle has no types
    """An app whose handlers get the inputs that they declare; `absent` is the detail without a service."""

    def __init__(self, absent: str) -> None:
        super().__init__()
        self.absent = absent
        self.config["catchall"] = False
        self.use(None)
        self.declarations: dict[Route, Declaration] = {}
        self.requests = metrics.Requests()
        self.add_hook("before_request", before_request)

    def use(self, service: Any, *tokens: str) -> None:
        """Hand this service to handlers from now on. If there are `tokens`, clients must send one."""
        self.config.update(running=service, tokens=tuple(filter(None, tokens)))

    def add_route(self, route: Route) -> None:
        """Read the route's declaration at once, so that a mistake in it is an import error."""
        handler, options = route.callback, route.config.items() - self.config.items()
        try:
            declared = Declaration(handler, route.method, route.rule, **dict(options))
        except (TypeError, ValueError, NameError) as mistake:
            raise TypeError(f"{route.method} {route.rule} ({handler.__name__}): {mistake}") from None
        self.declarations[route] = declared

        def handle(**path: str) -> None:
            request.environ[ANSWER] = self.call(handler, declared, path)

        route.callback = handle
        super().add_route(route)

    def serve(self, index: str, rule: str, *files: Path) -> None:
        """Serve these files by name, and `index.html` at its own path."""
        pages = {path.name: page(path) for path in files}

        def handle(name: str = "index.html") -> None:
            if name not in pages:
                raise NothingHere("There is no file {}.", name)
            body, kind, tag = pages[name]
            same = tag in (header("If-None-Match") or "")
            request.environ[ANSWER] = answer = Answer(304) if same else Answer(200, body, kind)
            answer.headers |= {"ETag": tag, "Cache-Control": "no-cache"}

        for path in (index, rule):
            super().add_route(Route(self, path, "GET", handle))

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request from an ASGI server, which cancels this if the client goes."""
        if scope["type"] != "http":
            return
        answer = await self.reply(requests.environment(scope, await requests.receive_body(receive)))
        encoded = [(name.encode("latin1"), value.encode("latin1")) for name, value in answer.headers.items()]
        async with aclosing(answer.more) if answer.more else nullcontext():
            await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
            body = b"" if scope["method"] == "HEAD" else answer.body
            if answer.more and body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
                async for chunk in answer.more:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                body = b""
            await send({"type": "http.response.body", "body": body})

    async def reply(self, environ: dict[str, Any]) -> Answer:
        """The answer to a request in a WSGI environment. A stream counts as answered when it begins."""
        began = time.perf_counter()
        self.requests.in_progress += 1
        try:
            refused = self._handle(environ)  # not `wsgi`, which goes on to make a WSGI answer
            found = explain(refused) if isinstance(refused, HTTPError) else environ.pop(ANSWER)
            answer: Answer = found if isinstance(found, Answer) else await found
        except Refusal as refusal:
            answer = refuse(refusal)
        except asyncio.CancelledError:
            self.note(environ, Answer(GONE), time.perf_counter() - began)
            raise
        except Exception:
            log.exception("a request failed", extra={"event": "request_crashed"})
            answer = refuse(Refusal("The service failed; its log says why."))
        finally:
            self.requests.in_progress -= 1
        if answer.body and not answer.more:
            answer.headers["Content-Length"] = str(len(answer.body))
        answer.headers |= {REQUEST_ID: REQUEST.get(), **SECURITY_HEADERS}
        self.note(environ, answer, time.perf_counter() - began)
        return answer

    async def call(self, handler: Callable[..., Any], declared: Declaration, path: dict[str, str]) -> Answer:
        """Call a handler, and send its result: bytes and streams as they are, everything else as JSON."""
        answer = Answer(declared.status)
        try:
            result = handler(**self.arguments(declared, path, answer))
            if isinstance(result, AsyncGenerator):
                answer.more = result
                result = await anext(result)  # while a refusal can still be the answer
            elif inspect.isawaitable(result):
                result = await result
        except OutcomeUnknown as refusal:
            raise OutcomeUnknown(f"{refusal} {declared.unknown}") from None
        if result is not None and answer.status != 304:  # it has no content (RFC 9110, section 15.4.5)
            answer.headers["Content-Type"] = declared.media_type
            answer.body = result if isinstance(result, bytes) else msgspec.json.encode(result)
        return answer

    def arguments(self, declared: Declaration, path: dict[str, str], answer: Answer) -> dict[str, Any]:
        """The handler's arguments by name; raises a Refusal if the request isn't as declared."""
        given: dict[str, Any] = {"answer": answer} if declared.answer else {}
        if declared.service:
            given["service"] = self.config["running"]
            if given["service"] is None:
                raise NotRunning(self.absent)
        if declared.token and self.config["tokens"]:
            requests.authorize(self.config["tokens"])
        if declared.keyless and header("Idempotency-Key") is not None:
            raise KeyNotTaken("Idempotency-Key: is not taken here. " + declared.unknown)
        for name, text in path.items():
            given[name] = requests.convert(text, declared.path[name], name)
        for name, struct in declared.structs.items():
            given[name] = READERS[name](struct)
        if "body" not in given and request.method not in ("GET", "HEAD"):
            requests.whole_body()  # a request that was cut off must not change anything
        return given

    def note(self, environ: dict[str, Any], answer: Answer, seconds: float) -> None:
        """Count an answer, and log it: at INFO if the request failed, else at DEBUG."""
        route, method, path = environ.get("bottle.route"), environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.answered(route.rule if route else "unmatched", method, str(answer.status), seconds)
        level = logging.INFO if answer.status >= 400 and path not in PROBES else logging.DEBUG
        if not log.isEnabledFor(level):
            return
        fields = {
            "client": environ["REMOTE_ADDR"],
            "method": method,
            "path": ascii(path)[1:-1][:200],  # without the query: it may hold a secret that went astray
            "status": answer.status,
            "milliseconds": round(seconds * 1000, 1),
        }
        text = "%(method)s %(path)s from %(client)s: %(status)d in %(milliseconds)s ms"
        if answer.detail:
            fields["detail"] = answer.detail
            text += ": %(detail)s"
        log.log(level, text, fields, extra=fields | {"event": "request"})


def before_request() -> None:
    """Give a request its id, and ignore slashes at the end of the path."""
    environ = request.environ
    begin_request(header(REQUEST_ID))
    environ["PATH_INFO"] = environ["PATH_INFO"].rstrip("/")
    try:  # Bottle drops bytes that it can't decode, and would answer for another path
        environ["bottle.raw_path"].encode("latin1").decode()
    except UnicodeDecodeError:
        raise NothingHere("There is nothing here.") from None


def refuse(refusal: Refusal) -> Answer:
    """An error as application/problem+json (RFC 9457)."""
    body = msgspec.json.encode(refusal.problem())
    answer = Answer(refusal.status, body, "application/problem+json", refusal.logged)
    answer.headers |= refusal.headers
    return answer


def explain(error: HTTPError) -> Answer:
    """The answer for an unknown path or method, as Bottle found it."""
    if error.status_code == 404:
        raise NothingHere("There is nothing here.")
    methods = {*error.get_header("Allow").split(","), "OPTIONS"}
    methods |= {"HEAD"} if "GET" in methods else set()
    wrong = refuse(MethodNotAllowed("The path has no such method."))
    answer = Answer(204) if request.method == "OPTIONS" else wrong
    answer.headers["Allow"] = ", ".join(sorted(methods))
    return answer


def page(path: Path) -> tuple[bytes, str, str]:
    """A file, its type and its tag. Browsers compare tags each time, so a page never mixes two releases."""
    body, kind = path.read_bytes(), str(mimetypes.guess_type(path)[0])
    kind += "; charset=utf-8" if kind.startswith("text/") else ""
    return body, kind, f'"{sha256(body).hexdigest()[:20]}"'
