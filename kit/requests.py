"""What a request holds, converted and checked: its path, query, headers, token and body."""

import hmac
import re
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

import msgspec
from bottle import request

from kit import errors, mistakes
from kit.errors import Unprocessable

JSON = "application/json"
LARGEST_BODY = 64 * 1024  # bytes
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

    Raises Unprocessable if any other is given twice.
    """
    lists, given = list_names(struct), dict[str, str | list[str]]()
    for name in request.query:
        raw = request.query.getall(name)
        if len(raw) > 1 and name not in lists:
            raise Unprocessable(f"query.{name}: must be given only once.")
        try:
            text = ",".join(raw).encode("latin1").decode()  # Bottle gives a character for each byte
        except UnicodeDecodeError:
            raise Unprocessable(f"query.{name}: must be UTF-8.") from None
        given[name] = text.split(",") if name in lists else text
    return given


@cache
def list_names(struct: type[msgspec.Struct]) -> list[str]:
    """The fields of a Struct that take a list."""
    fields: Any = msgspec.json.schema_components([struct])[1][struct.__name__]["properties"]
    return [name for name, field in fields.items() if field.get("type") == "array"]


@cache
def header_names(struct: type[msgspec.Struct]) -> list[str]:
    """The headers that the fields of a Struct stand for."""
    return [field.encode_name for field in msgspec.structs.fields(struct)]


def convert(data: Any, kind: Any, place: str) -> Any:
    """Strings from a path, a query or headers as the types of `kind`; Unprocessable names the field."""
    try:
        found = msgspec.convert(data, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Unprocessable(mistakes.sentence(error, kind, place)) from None
    # msgspec takes 1.0 and 01 for whole numbers, too, and 2026 for a time; one thing has one name.
    fields = {f"{place}.{name}": name for name in data} if isinstance(data, dict) else {place: None}
    for where, name in fields.items():
        text, value = (data[name], getattr(found, name, None)) if name else (data, found)
        if isinstance(value, int) and str(value) != text:
            raise Unprocessable(f"{where}: Expected `int`, got `{text:.40}`")
        if isinstance(value, datetime) and "-" not in text[1:]:
            raise Unprocessable(f"{where}: {mistakes.TIME}")
    return found


def read_body(struct: type[msgspec.Struct]) -> Any:
    """The request's JSON body; raises BadRequest, ContentTooLarge, UnsupportedMediaType or Unprocessable."""
    if (header("Content-Type") or "").partition(";")[0].strip().lower() != JSON:
        raise errors.UnsupportedMediaType(f"Content-Type: must be {JSON}.")
    if header("Content-Encoding") is not None:
        raise errors.UnsupportedMediaType("Content-Encoding: must not be used.")
    if (header("Transfer-Encoding") or "chunked").lower() != "chunked":
        raise errors.UnsupportedMediaType("Transfer-Encoding: must be chunked or not be used.")
    try:
        return msgspec.json.decode(receive(), type=struct)
    except msgspec.ValidationError as error:
        raise Unprocessable(mistakes.sentence(error, struct, "body")) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.BadRequest(f"body: is not JSON: {error}") from None


def receive() -> bytes:
    """The request's body, complete; raises BadRequest or ContentTooLarge."""
    body: bytes | None = request.environ[BODY]
    if body is None:
        raise errors.BadRequest("body: did not come completely.")
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
