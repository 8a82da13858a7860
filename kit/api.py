"""A Bottle app whose routes declare what they take, give and refuse, and that reads and writes by this.

Bottle finds the route of a request and runs the hooks; then the app calls the handler, which may wait.
"""

import inspect
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import msgspec
from bottle import Bottle, HTTPError, HTTPResponse, Route, request, response, static_file

from kit import asgi, errors, metrics, requests, trace
from kit.errors import (
    BadRequest,
    ContentTooLarge,
    MethodNotAllowed,
    NotFound,
    NotRead,
    NotStored,
    Problem,
    Refusal,
    Unauthorized,
    Unavailable,
    Unprocessable,
    UnsupportedMediaType,
)
from kit.headers import ANSWERS
from kit.requests import JSON, convert, header

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
CALL = "kit.call"  # where a request's environment has the call of its handler
PROBES = ("/healthz", "/readyz")  # answer 503 again and again while something is wrong
SECURITY_HEADERS = {
    # Swagger UI draws its icons from data URLs. Everything else comes from here, and nothing is inline.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Declaration:
    """A route's inputs, outputs and errors, from its handler's signature and docstring and its decorator.

    A handler's arguments `query`, `headers` and `body` are Structs, `service` is the running service, and
    `answer` takes the status and headers of the answer. All other arguments are parts of the path. The
    decorator's options:

    status: of a successful answer. `also`: other success statuses and their headers
    errors: besides those that follow from the inputs
    sends: names of headers of a successful answer
    token: require the API token, if there is one
    page: for browsers: neither JSON nor in the document
    """

    def __init__(
        self,
        handler: Callable[..., Any],
        method: str,
        rule: str,
        status: int = 200,
        errors: tuple[type[Refusal], ...] = (),
        sends: tuple[str, ...] = (),
        also: tuple[tuple[int, tuple[str, ...]], ...] = (),
        media_type: str = JSON,
        token: bool = True,
        page: bool = False,
    ):
        self.name, self.status, self.sends, self.also = handler.__name__, status, sends, also
        self.media_type, self.token, self.page = media_type, token, page
        self.summary, _, self.description = (inspect.getdoc(handler) or "").partition("\n\n")
        if not self.summary:
            raise TypeError("has no docstring")
        self.path = hints = get_type_hints(handler, include_extras=True)
        if hints.keys() != {*inspect.signature(handler).parameters, "return"}:
            raise TypeError("every argument and the result need a type")
        self.returns = hints.pop("return")
        self.service, self.answer = (hints.pop(name, None) is not None for name in ("service", "answer"))
        structs = [hints.pop(name, None) for name in ("query", "headers", "body")]
        self.query, self.headers, self.body = structs
        if hints.keys() != set(re.findall(r"<(\w+)>", rule)):
            raise TypeError(f"the arguments {sorted(hints)} are not those of the path")
        if not all(struct is None or issubclass(struct, msgspec.Struct) for struct in structs):
            raise TypeError("query, headers and body must be Structs")
        if unknown := {*sends, *(name for _, names in also for name in names)} - ANSWERS.keys():
            raise TypeError(f"kit.headers does not describe {sorted(unknown)}")
        json = [self.returns] if media_type == JSON and not page else []
        msgspec.json.schema_components([*filter(None, structs), *hints.values(), *json])  # may find none
        implied: dict[type[Refusal], Any] = {
            MethodNotAllowed: True,
            BadRequest: self.body,
            ContentTooLarge: self.body,
            UnsupportedMediaType: self.body,
            Unprocessable: hints or any(structs),
            Unauthorized: token,
            (Unavailable if not token else NotRead if method == "GET" else NotStored): self.service,
        }
        refusals = {*errors, *(refusal for refusal, follows in implied.items() if follows)}
        if not all(issubclass(refusal, Refusal) for refusal in refusals):
            raise TypeError("errors must be Refusals")
        self.errors = sorted(refusals, key=lambda refusal: refusal.status)


class Answer:
    """What a handler may set besides what it returns."""

    def __init__(self, status: int):
        self.status = status
        self.headers: dict[str, str] = {}


class Reply(NamedTuple):
    """A whole answer. A stream must be closed."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | AsyncGenerator[bytes, None]
    detail: str = ""  # of a problem


class Api(Bottle):  # type: ignore[misc]  # Bottle has no types
    """An app whose handlers get what they declare; `absent` tells clients that no service is running."""

    def __init__(self, absent: str) -> None:
        super().__init__()
        self.absent = absent
        self.use(None)
        self.declarations: dict[Route, Declaration] = {}
        self.requests = metrics.Requests()
        self.default_error_handler = explain
        self.add_hook("before_request", begin)

    def use(self, service: Any, token: str = "") -> None:
        """Hand this service to handlers from now on, or none. `token` is what clients must bear."""
        self.config.update(running=service, api_token=token)

    def add_route(self, route: Route) -> None:
        """Read the route's declaration at once, so that a mistake in it is an import error."""
        handler, options = route.callback, route.config.items() - self.config.items()
        try:
            declared = Declaration(handler, route.method, route.rule, **dict(options))
        except (TypeError, ValueError, NameError) as mistake:
            raise TypeError(f"{route.method} {route.rule} ({handler.__name__}): {mistake}") from None
        self.declarations[route] = declared

        def handle(**path: str) -> bytes:
            request.environ[CALL] = self.call(handler, declared, path)
            return b""

        route.callback = handle
        super().add_route(route)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request from an ASGI server, which cancels this if the client goes."""
        if scope["type"] != "http":
            return
        environ = asgi.environment(scope, await asgi.receive_body(receive))
        status, headers, body, _ = await self.reply(environ)
        start = {"type": "http.response.start", "status": status}
        encoded = [(name.encode("latin1"), value.encode("latin1")) for name, value in headers]
        await send(start | {"headers": encoded})
        if isinstance(body, bytes):
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
            return
        async with aclosing(body):
            if scope["method"] != "HEAD":
                async for chunk in body:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    async def reply(self, environ: dict[str, Any]) -> Reply:
        """The answer to a request in a WSGI environment. A stream counts as answered when it begins."""
        began, begun = time.perf_counter(), list[Any]()
        self.requests.in_progress += 1
        try:
            body = self.wsgi(environ, lambda *start: begun.append(start))
            if call := environ.pop(CALL, None):
                reply: Reply = await call
            else:
                status, headers, _ = begun[0]
                reply = Reply(int(status[:3]), headers, b"".join(body))
        finally:
            self.requests.in_progress -= 1
        reply.headers.extend([(trace.HEADER, trace.REQUEST.get()), *SECURITY_HEADERS.items()])
        self.note(environ, reply, time.perf_counter() - began)
        return reply

    async def call(self, handler: Callable[..., Any], declared: Declaration, path: dict[str, str]) -> Reply:
        """Call a handler, and write what it returns."""
        answer = Answer(declared.status)
        try:
            result = handler(**self.arguments(declared, path, answer))
            if inspect.isawaitable(result):
                result = await result
        except Refusal as refusal:
            return problem(refusal.problem(), refusal.headers)
        except Exception:
            log.exception("a request failed", extra={"event": "request_crashed"})
            return problem(Refusal(errors.INTERNAL).problem())
        return write(result, answer, declared.media_type)

    def arguments(self, declared: Declaration, path: dict[str, str], answer: Answer) -> dict[str, Any]:
        """What the handler takes, by name; raises the Refusal that says what is wrong with the request."""
        given: dict[str, Any] = {"answer": answer} if declared.answer else {}
        if declared.service:
            given["service"] = self.config["running"]
            if given["service"] is None:
                raise Unavailable(self.absent)
        if declared.token and self.config["api_token"]:
            requests.authorize(self.config["api_token"])
        for name, text in path.items():
            given[name] = convert(text, declared.path[name], name)
        if declared.query:
            given["query"] = convert(requests.query(declared.query), declared.query, "query")
        if declared.headers:
            texts = {name: header(name) for name in requests.header_names(declared.headers)}
            sent = {name: text for name, text in texts.items() if text is not None}
            given["headers"] = convert(sent, declared.headers, "headers")
        if declared.body:
            given["body"] = requests.read_body(declared.body)
        elif request.method not in ("GET", "HEAD"):
            requests.receive()  # a request that was cut off must not change anything
        return given

    def note(self, environ: dict[str, Any], reply: Reply, seconds: float) -> None:
        """Count an answer, and log it: at INFO if the request failed, else at DEBUG."""
        route, method, path = environ.get("bottle.route"), environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.answered(route.rule if route else "unmatched", method, str(reply.status), seconds)
        level = logging.INFO if reply.status >= 400 and path not in PROBES else logging.DEBUG
        if not log.isEnabledFor(level):
            return
        fields = {
            "client": environ["REMOTE_ADDR"],
            "method": method,
            "path": ascii(path)[1:-1][:200],  # without the query: it may hold a secret that went astray
            "status": reply.status,
            "milliseconds": round(seconds * 1000, 1),
        }
        text = "%(method)s %(path)s from %(client)s: %(status)d in %(milliseconds)s ms"
        if reply.status >= 500:  # our own sentence; those about the client's mistakes may quote a secret
            fields["detail"] = reply.detail
            text += ": %(detail)s"
        log.log(level, text, fields, extra=fields | {"event": "request"})


# Requests


def begin() -> None:
    """Give a request its id, and let every route be asked for with a slash at its end, too."""
    environ = request.environ
    trace.begin(header(trace.HEADER))
    environ["PATH_INFO"] = environ["PATH_INFO"].rstrip("/")
    try:  # Bottle leaves out the bytes that it cannot decode, and so would answer for another path
        environ["bottle.raw_path"].encode("latin1").decode()
    except UnicodeDecodeError:
        raise HTTPError(404, "Not found: the path is not UTF-8.") from None


# Answers


def write(result: Any, answer: Answer, media_type: str) -> Reply:
    """What a handler returned: a file, bytes or a stream as it is, all else as JSON."""
    if isinstance(result, HTTPError):
        return problem(Problem(errors.title(result.status_code), result.status_code, str(result.body)))
    if isinstance(result, HTTPResponse):
        body = b"".join(result.body)
        getattr(result.body, "close", lambda: None)()
        return Reply(result.status_code, result.headerlist, body)
    headers = list(answer.headers.items())
    if result is None or answer.status == 304:  # it has no content (RFC 9110, section 15.4.5)
        return Reply(answer.status, headers, b"")
    headers.append(("Content-Type", media_type))
    if isinstance(result, AsyncGenerator):
        return Reply(answer.status, headers, result)
    body = result if isinstance(result, bytes) else msgspec.json.encode(result)
    headers.append(("Content-Length", str(len(body))))
    return Reply(answer.status, headers, body)


def problem(shape: Problem, headers: Mapping[str, str] = {}) -> Reply:
    """An error as application/problem+json (RFC 9457)."""
    body = msgspec.json.encode(shape)
    length = ("Content-Length", str(len(body)))
    return Reply(shape.status, [*headers.items(), ("Content-Type", PROBLEM), length], body, shape.detail)


def explain(error: HTTPError) -> bytes:
    """The errors that Bottle finds, as such a problem: no such route or method, or a hook that failed."""
    if error.status_code == 405:
        methods = set(error.get_header("Allow").split(","))
        methods |= {"OPTIONS", "HEAD"} if "GET" in methods else {"OPTIONS"}
        response.set_header("Allow", ", ".join(sorted(methods)))
        if request.method == "OPTIONS":
            response.status = 204
            return b""
    response.content_type = PROBLEM
    detail = errors.INTERNAL if error.status_code == 500 else str(error.body)
    return msgspec.json.encode(Problem(errors.title(error.status_code), error.status_code, detail))


def file(name: str, *folders: Path | str) -> HTTPResponse:
    """The file of this name in the first folder that has one; raises NotFound."""
    for folder in folders:
        if name in os.listdir(folder):
            # no-cache: a browser asks each time (304: not changed), so files of two releases never meet.
            return static_file(name, root=folder, headers={"Cache-Control": "no-cache"})
    raise NotFound(f"There is no file {name}.")
