"""What a request holds, converted and checked: its path, query, headers, token and body.

What is wrong with it, and what would be right, is one sentence.
"""

import hmac
import re
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

import msgspec
from bottle import request
from msgspec import inspect

from kit import errors
from kit.errors import InvalidValue

JSON = "application/json"
LARGEST_BODY = 64 * 1024  # bytes
TIME = "must be a time with its zone, such as 2026-03-28T00:18:13Z (in a URL, write + as %2B)"
BODY = "kit.body"  # where a request's environment has its body, or None if that did not come completely


@lru_cache(256)  # a client may send any names
def cgi_name(name: str) -> str:
    """The name of a header in a WSGI environment."""
    text = name.upper().replace("-", "_")
    return text if text in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{text}"


def header(name: str) -> str | None:
    """A header of the request, one character per byte. (Bottle's own fails where that is not UTF-8.)"""
    raw: str | None = request.environ.get(cgi_name(name))
    return raw


def query(struct: type[msgspec.Struct]) -> dict[str, str | list[str]]:
    """The parameters of the query. A list has commas, or is given several times, as some clients do.

    Raises InvalidValue if any other is given twice.
    """
    lists, given = list_names(struct), dict[str, str | list[str]]()
    for name in request.query:
        raw = request.query.getall(name)
        if len(raw) > 1 and name not in lists:
            raise InvalidValue("query.{}: must be given only once.", name[:40])
        try:
            text = ",".join(raw).encode("latin1").decode()  # Bottle gives a character for each byte
        except UnicodeDecodeError:
            raise InvalidValue("query.{}: must be UTF-8.", name[:40]) from None
        given[name] = text.split(",") if name in lists else text
    return given


@cache
def list_names(struct: type[msgspec.Struct]) -> list[str]:
    """The fields of a Struct that take a list."""
    fields: Any = msgspec.json.schema_components([struct])[1][struct.__name__]["properties"]
    return [name for name, field in fields.items() if field.get("type") == "array"]


def convert(data: Any, kind: Any, place: str) -> Any:
    """Strings from a path, a query or headers as the types of `kind`; InvalidValue names the field."""
    try:
        found = msgspec.convert(data, kind, strict=False)
    except msgspec.ValidationError as error:
        raise mistake(error, kind, place) from None
    # msgspec takes 1.0 and 01 for whole numbers, too, and 2026 for a time; we accept one spelling per value.
    fields = {f"{place}.{name}": name for name in data} if isinstance(data, dict) else {place: None}
    for where, name in fields.items():
        text, value = (data[name], getattr(found, name, None)) if name else (data, found)
        if isinstance(value, int) and str(value) != text:
            raise InvalidValue(f"{where}: Expected `int`, got `{{}}`", f"{text:.40}")
        if isinstance(value, datetime) and "-" not in text[1:]:
            raise InvalidValue(f"{where}: {TIME}")
    return found


def read_body(struct: type[msgspec.Struct]) -> Any:
    """The request's JSON body; raises what `receive` raises, or InvalidValue."""
    if (header("Content-Type") or "").partition(";")[0].strip().lower() != JSON:
        raise errors.UnsupportedMediaType(f"Content-Type: must be {JSON}.")
    try:
        return msgspec.json.decode(receive(), type=struct)
    except msgspec.ValidationError as error:
        raise mistake(error, struct, "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.MalformedBody(f"body: is not JSON: {error}") from None


def receive() -> bytes:
    """The request's body, complete; raises IncompleteBody, ContentTooLarge or UnsupportedMediaType."""
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


def authorize(token: str) -> None:
    """Raise Unauthorized unless the request bears this token (RFC 6750)."""
    scheme, _, given = (header("Authorization") or "").partition(" ")
    matches = hmac.compare_digest(given.strip(" ").encode("latin1"), token.encode())
    if not (scheme.lower() == "bearer" and matches):
        raise errors.Unauthorized("Authorization: must bear the API token.")


def preferred_wait(prefer: str) -> int | None:
    """How many seconds `Prefer: wait=N` asks for (RFC 7240); None if it does not."""
    wanted = re.search(r"(?:^|[,;])\s*wait\s*=\s*(\"?)(\d{1,4000})\1\s*(?:$|[,;])", prefer, re.IGNORECASE)
    return int(wanted[2]) if wanted else None


# Sentences


def mistake(error: msgspec.ValidationError, kind: Any, place: str) -> InvalidValue:
    """What msgspec found in a value of this type, after the name of the field in which it found it."""
    reason, _, path = str(error).partition(" - at `$")
    path = re.sub(r"\[\d+\]$", "", path.rstrip("`"))  # an item of a list
    found = at(inspect.type_info(kind), list(filter(None, path.split("."))))
    if unknown := re.match(r"Object contains unknown field `(.*)`", reason, re.DOTALL):
        known = ", ".join(field.encode_name for field in getattr(found, "fields", ()))
        return InvalidValue(f"{place}{path}.{{}}: is not one of {known}", f"{unknown[1]:.40}")
    if missing := re.match(r"Object missing required field `(.*)`", reason):
        return InvalidValue(f"{place}{path}.{missing[1]}: is missing")
    value = re.match("Invalid enum value (.*)", reason, re.DOTALL)
    return InvalidValue(f"{place}{path}: {better(reason, found)}", f"{value[1]:.40}" if value else None)


def better(reason: str, kind: inspect.Type | None) -> str:
    """The reason, with what is allowed if msgspec does not say it."""
    if isinstance(kind, inspect.Metadata):
        if "matching regex" in reason and kind.extra and "allowed" in kind.extra:
            return f"must have {kind.extra['allowed']}"
        kind = kind.type
    if isinstance(kind, inspect.ListType):
        kind = kind.item_type
    if isinstance(kind, inspect.EnumType) and reason.startswith("Invalid enum value"):
        return f"{{}} is not one of {', '.join(str(member.value) for member in kind.cls)}"
    if isinstance(kind, inspect.IntType) and re.match("Expected `int` [<>]", reason):
        return f"Expected `int` from {kind.ge} to {kind.le}"
    return TIME if isinstance(kind, inspect.DateTimeType) else reason


def at(kind: inspect.Type, path: list[str]) -> inspect.Type | None:
    """The type of what is at this path in a value of this type, if that is one."""
    if isinstance(kind, inspect.Metadata):
        inner = at(kind.type, path)
        return kind if inner is kind.type else inner
    if isinstance(kind, inspect.UnionType):
        kinds = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        return at(kinds[0], path) if len(kinds) == 1 else None
    if not path:
        return kind
    for field in kind.fields if isinstance(kind, inspect.StructType) else ():
        if field.encode_name == path[0]:
            return at(field.type, path[1:])
    return None
