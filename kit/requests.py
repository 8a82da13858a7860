"""A request: its WSGI environment, which Bottle reads, and its inputs, converted and checked.

A refusal names the field and the mistake, or the values that are allowed.
"""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from functools import cache, lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from bottle import request
from msgspec import inspect
from msgspec.structs import astuple

from kit import errors

JSON = "application/json"
LARGEST_BODY = 64 * 1024  # bytes
LONGEST_BODY = 30.0  # seconds in which a body must have come
TIME = "must be a time with its zone, such as 2026-03-28T00:18:13Z (in a URL, write + as %2B)"
BODY = "kit.body"  # the key in the environment for the body, or None if it is incomplete


@lru_cache(256)  # a client may send any names
def cgi_name(name: str) -> str:
    """A header's name in a WSGI environment."""
    text = name.upper().replace("-", "_")
    return text if text in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{text}"


def environment(scope: dict[str, Any], body: bytes | None) -> dict[str, Any]:
    """A request from an ASGI server as a WSGI environment (PEP 3333); `body` comes from `receive_body`."""
    path = scope["raw_path"]
    if re.match(rb"(?i)https?://", path):  # the whole URL (RFC 9112, section 3.2.2)
        path = b"/" + b"".join(path.split(b"/", 3)[3:])
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "PATH_INFO": unquote_to_bytes(path).decode("latin1"),
        "QUERY_STRING": scope["query_string"].decode("latin1"),
        "REMOTE_ADDR": scope["client"][0] if scope["client"] else "",
        BODY: body,
    }
    for name, value in scope["headers"]:
        key, text = cgi_name(name.decode("latin1")), value.decode("latin1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ


async def receive_body(receive: Callable[[], Awaitable[dict[str, Any]]]) -> bytes | None:
    """A request's body, at most one byte more than LARGEST_BODY; None if it is incomplete."""
    message = await receive()
    if message["type"] == "http.request" and not message["more_body"]:
        return bytes(message["body"])
    body = bytearray()
    with suppress(TimeoutError):
        async with asyncio.timeout(LONGEST_BODY):
            while message["type"] == "http.request":
                body += message["body"]
                if not message["more_body"] or len(body) > LARGEST_BODY:
                    return bytes(body)
                message = await receive()
    return None


def header(name: str) -> str | None:
    """A request header, one character per byte. (Bottle's own fails if it isn't UTF-8.)"""
    raw: str | None = request.environ.get(cgi_name(name))
    return raw


def read_query(struct: type[msgspec.Struct]) -> Any:
    """The request's query. A list has commas or is repeated; no other parameter is given twice."""
    fields: Any = properties(struct)
    given: dict[str, str | list[str]] = {}
    for name in request.query:
        raw, is_list = request.query.getall(name), fields.get(name, {}).get("type") == "array"
        if len(raw) > 1 and not is_list:
            raise errors.InvalidValue("query.{}: must be given only once.", name[:40])
        try:
            text = ",".join(raw).encode("latin1").decode()  # Bottle gives a character for each byte
        except UnicodeDecodeError:
            raise errors.InvalidValue("query.{}: must be UTF-8.", name[:40]) from None
        given[name] = text.split(",") if is_list else text
    return convert(given, struct, "query")


@cache
def properties(struct: type[msgspec.Struct]) -> Any:
    """A Struct's fields as JSON schemas."""
    return msgspec.json.schema_components([struct])[1][struct.__name__]["properties"]


def read_headers(struct: type[msgspec.Struct]) -> Any:
    """The request's headers that have a field in this Struct."""
    given = {name: text for name in rules(struct) if (text := header(name)) is not None}
    return convert(given, struct, "headers")


def convert(data: Any, kind: Any, place: str) -> Any:
    """Strings from a path, a query or headers as the types of `kind`."""
    try:
        found = msgspec.convert(data, kind, strict=False)
    except msgspec.ValidationError as error:
        raise mistake(error, kind, place) from None
    # msgspec takes 1.0 and 01 for whole numbers, too, and 2026 for a time; we accept one spelling per value.
    whole = not isinstance(data, dict)
    values = {"": found} if whole else dict(zip(found.__struct_encode_fields__, astuple(found), strict=True))
    for name, text in ({"": data} if whole else data).items():
        value = values[name]
        numbers, texts = (value, text) if isinstance(value, list) else ([value], [text])
        other_number = isinstance(numbers[0], int) and [*map(str, numbers)] != texts
        if other_number or (isinstance(value, datetime) and "-" not in text[1:]):
            raise errors.InvalidValue(f"{place}.{name}".rstrip(".") + f": {rules(kind)[name]}")
    return found


def read_body(struct: type[msgspec.Struct]) -> Any:
    """The request's JSON body; raises a Refusal."""
    if (header("Content-Type") or "").partition(";")[0].strip().lower() != JSON:
        raise errors.UnsupportedMediaType(f"Content-Type: must be {JSON}.")
    try:
        return msgspec.json.decode(whole_body(), type=struct)
    except msgspec.ValidationError as error:
        raise mistake(error, struct, "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.MalformedBody(f"body: is not JSON: {error}") from None


def whole_body() -> bytes:
    """The request's body; raises IncompleteBody, ContentTooLarge or UnsupportedMediaType."""
    if header("Content-Encoding") is not None:
        raise errors.UnsupportedMediaType("Content-Encoding: must not be used.")
    if (header("Transfer-Encoding") or "chunked").lower() != "chunked":
        raise errors.UnsupportedMediaType("Transfer-Encoding: must be chunked or not be used.")
    body: bytes | None = request.environ[BODY]
    if body is None:
        raise errors.IncompleteBody("body: did not come completely.")
    if len(body) > LARGEST_BODY:
        raise errors.ContentTooLarge(f"body: must not be longer than {LARGEST_BODY} bytes.")
    return body


def authorize(tokens: tuple[str, ...]) -> None:
    """Raise Unauthorized unless the request bears one of these tokens (RFC 6750)."""
    scheme, _, given = (header("Authorization") or "").partition(" ")
    sent = given.strip(" ").encode("latin1")
    matches = [hmac.compare_digest(sent, token.encode()) for token in tokens]  # all, in constant time
    if not (scheme.lower() == "bearer" and any(matches)):
        raise errors.Unauthorized("Authorization: must bear the API token.")


# Mistakes


def mistake(error: msgspec.ValidationError, kind: Any, place: str) -> errors.Refusal:
    """The refusal for a mistake that msgspec found in a `kind`."""
    text, right = str(error), rules(kind)
    if unknown := re.fullmatch("Object contains unknown field `(.*)`", text, re.DOTALL):
        return errors.InvalidValue(f"{place}.{{}}: is not one of {', '.join(right)}", f"{unknown[1]:.40}")
    if missing := re.fullmatch("Object missing required field `(.*)`", text):
        return errors.InvalidValue(f"{place}.{missing[1]}: is missing")
    field = re.search(r"`\$\.([^.[`]+)[^`]*`$", text)
    where, rule = (f"{place}.{field[1]}", right[field[1]]) if field else (place, right.get(""))
    reason = text.partition(" - at `$")[0]
    if not rule or ", got `" in reason:  # msgspec's own sentence is better
        return errors.InvalidValue(f"{where}: {reason}")
    value = re.match("Invalid enum value (.*) - at", text, re.DOTALL)
    return errors.InvalidValue(f"{where}: {rule}", f"{value[1]:.40}" if value else None)


@cache
def rules(kind: Any) -> dict[str, str]:
    """A sentence for each field in a Struct, or for another type under the name ""; see `rule`."""
    whole = inspect.type_info(kind)
    if isinstance(whole, inspect.StructType):
        return {field.encode_name: rule(field.type) for field in whole.fields}
    return {"": rule(whole)}


def rule(kind: inspect.Type) -> str:
    """The values that this type allows, or "" if msgspec's own sentence is better."""
    match kind:
        case inspect.Metadata(type=inner, extra=extra):
            return str(extra["allowed"]) if extra else rule(inner)
        case inspect.UnionType(types=(inner, *_)) | inspect.ListType(item_type=inner):
            return rule(inner)
        case inspect.EnumType(cls=members):
            return f"{{}} is not one of {', '.join(str(member.value) for member in members)}"
        case inspect.IntType(ge=low, le=high):
            return f"Expected `int` from {low} to {high}"
        case inspect.DateTimeType():
            return TIME
    return ""
