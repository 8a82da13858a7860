"""Bytes to a server over a plain socket: requests that no HTTP library would send."""

import contextlib
import socket
import struct

POST = b"POST /stations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"description": "x"}'


def connect(port: int) -> socket.socket:
    """A new connection, which raises TimeoutError after a minute of silence."""
    return socket.create_connection(("127.0.0.1", port), 60)


def talk(port: int, data: bytes, half_close: bool = True) -> bytes:
    """Send this and nothing more; returns everything that comes back until the server closes."""
    answer = b""
    with connect(port) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            answer += piece
    return answer


def reset(port: int, data: bytes) -> None:
    """Send this, and break the connection off with a reset (TCP RST)."""
    with connect(port) as connection:
        connection.sendall(data)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def get(port: int, path: str, *headers: str) -> tuple[int, bytes]:
    """The status and the body of a GET with exactly this path and these header lines."""
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
    head, _, body = talk(port, "\r\n".join(lines).encode(), half_close=False).partition(b"\r\n\r\n")
    return int(head[9:12]), body


def answer(connection: socket.socket) -> bytes:
    """One whole answer, over a connection that stays open; b"" if the server closed it."""
    data = connection.recv(65536)
    while data:
        head, complete, body = data.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
        if complete and len(body) >= int(length):
            break
        data += connection.recv(65536)
    return data
