"""A tiny ASGI app, and gunicorn's worker with a subclass of its protocol that changes nothing."""

import asyncio
import gc
from typing import Any

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

control_socket_disable = True  # gunicorn reads its settings from this module, too
keepalive = 2  # seconds
asgi_lifespan = "off"
asgi_disconnect_grace_period = 0
gc.disable()
running = 0  # requests that are being worked on


class Unchanged(ASGIProtocol):
    """What any subclass starts from."""


class Plain(gasgi.ASGIWorker):
    """gunicorn's worker with this protocol."""

    def init_process(self) -> None:
        gasgi.ASGIProtocol = Unchanged
        super().init_process()


async def app(scope: dict, receive: Any, send: Any) -> None:
    """Answer as the path asks; /running tells how many other requests are being worked on,
    /connections how many connections are in memory.
    """
    global running
    if scope["type"] != "http":
        return
    running += 1
    try:
        await answer(scope["path"], receive, send)
    finally:
        running -= 1


async def answer(path: str, receive: Any, send: Any) -> None:
    status, text = 200, f"{running - 1} running"
    if path == "/connections":
        text = f"{sum(isinstance(one, ASGIProtocol) for one in gc.get_objects())} connections"
    elif path == "/parser":
        text = type(receive.__self__.protocol._callback_parser).__name__
    elif path == "/body":
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        status = 200 if message["type"] == "http.request" else 400
    elif path == "/refuse":
        status = 413
    elif path == "/slow":
        await asyncio.sleep(1.5)
    length = [] if path in ("/parts", "/endless") else [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": status, "headers": length})
    if path == "/parts":
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await asyncio.sleep(1)
    while path == "/endless":
        await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
    await send({"type": "http.response.body", "body": text.encode()})
