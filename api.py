"""What all routes share: the plugin that reads and writes JSON, the token, the one shape of an error."""

import hmac
import logging
from collections.abc import Callable
from functools import cache
from typing import get_type_hints

import msgspec
from bottle import Bottle, HTTPError, HTTPResponse, Route, request, response

import models
import openapi
import storage
from schemas import Problem

log = logging.getLogger(__name__)

LARGEST_BODY = 64 * 1024  # bytes
GUARDS = {
    # Swagger UI draws its icons from data URLs; nothing else comes from elsewhere, and nothing is inline.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
RETRY_LATER = {"Retry-After": "5"}  # seconds


def problem(error: HTTPError) -> str:
    """Every error that leaves here, as application/problem+json (RFC 9457); a 500 shows no internals."""
    guard()  # an unforeseen error passes the hook by
    response.content_type = "application/problem+json"
    if isinstance(error.body, Problem):
        return msgspec.json.encode(error.body)
    detail = "The service failed; its log says why." if error.status_code == 500 else str(error.body)
    return msgspec.json.encode(Problem(openapi.title(error.status_code), error.status_code, detail))


def guard():
    """What every answer tells a browser not to do with it."""
    for name, value in GUARDS.items():
        response.set_header(name, value)


def accept_a_trailing_slash():
    """Any route may be asked for with one."""
    request.environ["PATH_INFO"] = request.environ["PATH_INFO"].rstrip("/")


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


@cache
def header_names(shape: type) -> list[str]:
    """The headers that a Struct stands for."""
    return [field.encode_name for field in msgspec.structs.fields(shape)]


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
    """The plugin of every route: token, JSON in, JSON out, errors. A handler's annotations say what it takes."""

    name, api = "api", 2

    def setup(self, app: Bottle) -> None:
        app.default_error_handler = problem
        app.add_hook("before_request", accept_a_trailing_slash)
        app.add_hook("before_request", refuse_what_is_not_utf_8)
        app.add_hook("after_request", guard)

    def apply(self, callback: Callable, route: Route) -> Callable:
        hints = get_type_hints(callback, include_extras=True)
        status = route.config.get("status", 200)

        def handle(**path: str) -> HTTPResponse | bytes | None:
            if route.config.get("token", True):
                authorize()
            return write(call(callback, arguments(hints, path)), status)

        return handle


def arguments(hints: dict[str, type], path: dict[str, str]) -> dict:
    """What a handler takes, by name, out of the request; HTTPError 400, 413, 415 or 422 says what is wrong with it."""
    found = {name: read(text, hints[name], name) for name, text in path.items()}
    if "query" in hints:
        found["query"] = read(dict(request.query), hints["query"], "query")
    if "headers" in hints:
        given = {name: text for name in header_names(hints["headers"]) if (text := header(name)) is not None}
        found["headers"] = read(given, hints["headers"], "headers")
    if "body" in hints:
        found["body"] = read_body(hints["body"])
    return found


def call(handler: Callable, arguments: dict):
    """What the handler returns; HTTPError where the rules refuse it or the database cannot be read."""
    try:
        reads = request.method in ("GET", "HEAD")
        return storage.retried(handler, **arguments) if reads else handler(**arguments)
    except models.Refusal as refusal:
        later = RETRY_LATER if refusal.status == 503 else {}
        raise HTTPError(refusal.status, str(refusal), **later) from None
    except storage.ERRORS as error:
        log.error("the database cannot be read: %s", error)
        raise HTTPError(503, "The database cannot be read now.", **RETRY_LATER) from None


def write(result, status: int) -> HTTPResponse | bytes | None:
    """A handler's result as Bottle sends it: what is no answer already, and no text, becomes JSON."""
    response.status = status
    if result is None or isinstance(result, HTTPResponse | bytes):
        return result
    response.content_type = "application/json"
    return msgspec.json.encode(result)


def authorize() -> None:
    """Raise HTTPError 401 unless the request bears the API_TOKEN, if there is one (RFC 6750)."""
    token = request.app.config["api_token"]
    if not token:
        return
    scheme, _, given = (header("Authorization") or "").partition(" ")
    matches = hmac.compare_digest(given.strip(" ").encode("latin1"), token.encode())
    if not (scheme.lower() == "bearer" and matches):
        raise HTTPError(401, "Authorization: must bear the API token.", **{"WWW-Authenticate": "Bearer"})
