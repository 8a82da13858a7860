"""A Bottle app whose routes declare what they take, give and refuse, and that reads and writes by this."""

import inspect
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import msgspec
from bottle import Bottle, HTTPError, HTTPResponse, Route, request, response, static_file

from kit import errors, metrics, patience, requests, trace
from kit.errors import NotFound, Problem, Refusal, Unavailable, Unprocessable
from kit.headers import ANSWERS
from kit.requests import JSON, convert, header

PATIENCE = 10  # seconds that a request waits for a slot
SECURITY_HEADERS = {
    # Swagger UI draws its icons from data URLs. Everything else comes from here, and nothing is inline.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Options(NamedTuple):
    """What a route's decorator may say."""

    status: int = 200  # of a successful answer
    errors: tuple[type[Refusal], ...] = ()  # besides those that follow from what the route takes
    sends: tuple[str, ...] = ()  # names of headers of a successful answer
    also: tuple[tuple[int, tuple[str, ...]], ...] = ()  # other statuses but errors, and what they send
    media_type: str = JSON
    token: bool = True  # ask for the API token, if there is one
    slot: bool = True  # it counts as one of the requests that are worked on at once
    page: bool = False  # for people in a browser: neither JSON nor in the document


class Declaration(NamedTuple):
    """What a route says about itself, in its handler's signature and docstring and in its decorator.

    A handler's arguments `query`, `headers` and `body` are Structs, and `service` is the running service.
    Every other argument is a part of the path.
    """

    name: str
    summary: str
    description: str
    path: dict[str, Any]
    query: Any
    headers: Any
    body: Any
    service: bool
    returns: Any
    options: Options
    errors: list[type[Refusal]]


def declaration(route: Route) -> Declaration:
    """Read a route's declaration; raises TypeError, which names the route, for a mistake in it."""
    options = {name: value for name, value in route.config.items() if name not in route.app.config}
    try:
        return declared_by(route.callback, route.method, route.rule, Options(**options))
    except (TypeError, ValueError, NameError) as mistake:
        raise TypeError(f"{route.method} {route.rule} ({route.callback.__name__}): {mistake}") from None


def declared_by(handler: Callable[..., Any], method: str, rule: str, options: Options) -> Declaration:
    """The same, without the name of the route in the error."""
    summary, _, description = (inspect.getdoc(handler) or "").partition("\n\n")
    if not summary:
        raise TypeError("has no docstring")
    hints = get_type_hints(handler, include_extras=True)
    if hints.keys() != {*inspect.signature(handler).parameters, "return"}:
        raise TypeError("every argument and the result need a type")
    returns, service = hints.pop("return"), hints.pop("service", None) is not None
    query, headers, body = structs = [hints.pop(name, None) for name in ("query", "headers", "body")]
    if hints.keys() != set(re.findall(r"<(\w+)>", rule)):
        raise TypeError(f"the arguments {sorted(hints)} are not those of the path")
    if not all(struct is None or issubclass(struct, msgspec.Struct) for struct in structs):
        raise TypeError("query, headers and body must be Structs")
    if not all(issubclass(refusal, Refusal) for refusal in options.errors):
        raise TypeError("errors must be Refusals")
    if unknown := {*options.sends, *(name for _, names in options.also for name in names)} - ANSWERS.keys():
        raise TypeError(f"kit.headers does not say what {sorted(unknown)} mean")
    json = [returns] if options.media_type == JSON and not options.page else []
    msgspec.json.schema_components([*filter(None, structs), *hints.values(), *json])  # may find no schema
    refusals = {*options.errors, *implied(method, options, bool(hints or any(structs)), body, service)}
    takes = hints, query, headers, body, service
    by_status = sorted(refusals, key=lambda refusal: refusal.status)
    return Declaration(handler.__name__, summary, description, *takes, returns, options, by_status)


def implied(method: str, options: Options, takes: bool, body: Any, service: bool) -> Iterator[type[Refusal]]:
    """The errors that follow from what a route takes."""
    yield errors.MethodNotAllowed
    if body:
        yield from (errors.BadRequest, errors.ContentTooLarge, errors.UnsupportedMediaType)
    if takes:
        yield Unprocessable
    if options.token:
        yield errors.Unauthorized
    if service and options.slot:
        yield errors.NotRead if method == "GET" else errors.NotStored
    elif service:
        yield Unavailable


class Api(Bottle):  # type: ignore[misc]  # Bottle has no types
    """An app whose handlers get what they declare; `absent` tells clients that no service is running."""

    def __init__(self, absent: str) -> None:
        super().__init__()
        self.absent = absent
        self.use(None)
        self.declarations: dict[Route, Declaration] = {}
        self.requests = metrics.Requests()
        self.default_error_handler = answer_error
        self.add_hook("before_request", lambda: trace.begin(header(trace.HEADER)))
        self.add_hook("before_request", accept_trailing_slash)
        self.add_hook("before_request", refuse_path_that_is_not_utf_8)
        self.add_hook("after_request", set_common_headers)

    def use(self, service: Any, token: str = "", slots: int = 1) -> None:
        """Hand this service to handlers from now on, or none.

        `token` is what clients must bear; `slots` is how many requests are worked on at once.
        """
        self.config.update(running=service, api_token=token, slots=threading.BoundedSemaphore(slots))

    def add_route(self, route: Route) -> None:
        """Read the route's declaration at once, so that a mistake in it is an import error."""
        self.declarations[route] = declared = declaration(route)
        handler = route.callback

        def handle(**path: str) -> Any:
            try:
                arguments = self.arguments(declared, path)
                response.status = declared.options.status  # a handler may set one of `also`
                needs_slot = declared.service and declared.options.slot
                with patience.request(), self.slot() if needs_slot else nullcontext():
                    return write(handler(**arguments), declared.options)
            except Refusal as refusal:
                return answer(refusal.problem(), refusal.headers)

        route.callback = handle
        super().add_route(route)

    def wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Answer a request, and measure that. A stream counts until it begins."""
        began = time.perf_counter()

        def start(status: str, *rest: Any) -> Any:
            route = environ.get("bottle.route")
            rule, took = route.rule if route else "unmatched", time.perf_counter() - began
            self.requests.answered(rule, environ["REQUEST_METHOD"], status[:3], took)
            return start_response(status, *rest)

        with self.requests.in_progress.track_inprogress():
            return super().wsgi(environ, start)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the slots; raises Unavailable if none is free within PATIENCE."""
        slots = self.config["slots"]
        if not slots.acquire(timeout=PATIENCE):
            raise Unavailable("Too many requests are being worked on; nothing was stored.")
        try:
            yield
        finally:
            slots.release()

    @contextmanager
    def no_slot(self) -> Iterator[None]:
        """Give the slot back while a handler only waits."""
        slots = self.config["slots"]
        slots.release()
        try:
            yield
        finally:
            slots.acquire()

    def arguments(self, declared: Declaration, path: dict[str, str]) -> dict[str, Any]:
        """What the handler takes, by name; raises the Refusal that says what is wrong with the request."""
        given: dict[str, Any] = {}
        if declared.service:
            given["service"] = self.config["running"]
            if given["service"] is None:
                raise Unavailable(self.absent)
        if declared.options.token and self.config["api_token"]:
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


# Requests


def accept_trailing_slash() -> None:
    """Let every route be asked for with a slash at its end, too."""
    request.environ["PATH_INFO"] = request.environ["PATH_INFO"].rstrip("/")


def refuse_path_that_is_not_utf_8() -> None:
    """Bottle leaves out the bytes that it cannot decode, and so would answer for another path."""
    try:
        request.environ["bottle.raw_path"].encode("latin1").decode()
    except UnicodeDecodeError:
        raise HTTPError(404, "Not found: the path is not UTF-8.") from None


# Answers


def write(result: Any, options: Options) -> Any:
    """A handler's result as Bottle sends it: an answer, bytes or a stream as it is, all else as JSON."""
    if result is None or isinstance(result, HTTPResponse):
        return result
    if response.status_code == 304:
        return None  # it has no content (RFC 9110, section 15.4.5)
    response.content_type = options.media_type
    return result if isinstance(result, bytes | Iterator) else msgspec.json.encode(result)


def answer(problem: Problem, headers: dict[str, str]) -> bytes:
    """An error as application/problem+json (RFC 9457)."""
    response.status = problem.status
    response.content_type = "application/problem+json"
    for name, value in headers.items():
        response.set_header(name, value)
    return msgspec.json.encode(problem)


def answer_error(error: HTTPError) -> bytes:
    """The errors that Bottle finds: no such route, no such method, a handler that failed."""
    set_common_headers()  # an exception in a handler skips the hook
    if error.status_code == 405:
        methods = set(error.get_header("Allow").split(","))
        methods |= {"OPTIONS", "HEAD"} if "GET" in methods else {"OPTIONS"}
        response.set_header("Allow", ", ".join(sorted(methods)))
        if request.method == "OPTIONS":
            response.status = 204
            return b""
    detail = errors.INTERNAL if error.status_code == 500 else str(error.body)
    return answer(Problem(errors.title(error.status_code), error.status_code, detail), {})


def set_common_headers() -> None:
    """Tell browsers what not to do with an answer, and clients the id of their request."""
    response.set_header(trace.HEADER, trace.REQUEST.get() or trace.begin())
    for name, value in SECURITY_HEADERS.items():
        response.set_header(name, value)


def file(name: str, *folders: Path | str) -> HTTPResponse:
    """The file of this name in the first folder that has one; raises NotFound."""
    for folder in folders:
        if name in os.listdir(folder):
            # no-cache: a browser asks each time (304: not changed), so files of two releases never meet.
            return static_file(name, root=folder, headers={"Cache-Control": "no-cache"})
    raise NotFound(f"There is no file {name}.")
