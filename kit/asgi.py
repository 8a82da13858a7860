"""A request from an ASGI server as Bottle reads it: as a WSGI environment (PEP 3333)."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote_to_bytes

from kit.requests import BODY, LARGEST_BODY, cgi_name

LONGEST_BODY = 30.0  # seconds in which a body must have come


def environment(scope: dict[str, Any], body: bytes | None) -> dict[str, Any]:
    """The WSGI environment of a request with this body; None: it did not come completely."""
    path = scope["raw_path"]
    if path.startswith(b"http") and path.count(b"/") > 2:  # the whole URL (RFC 9112, section 3.2.2)
        path = b"/" + path.split(b"/", 3)[3]
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
    """A request's body, at most one byte more than LARGEST_BODY; None if it does not come completely."""
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
