"""The service with one more route, which makes one of its threads die."""

import ctypes
import threading

from app import Service, app


def exit_thread(name: str) -> None:
    """Raise SystemExit in the thread whose name begins with `name`; Python ends such a thread silently."""
    for thread in threading.enumerate():
        if thread.name.startswith(name):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )


def break_ledger(service: Service) -> None:
    service.ledger._next_round = "never"


def break_callback(service: Service) -> None:
    service.listener._client.on_publish = lambda *_: 1 / 0


WAYS = {
    "an error in the ledger": break_ledger,
    "an exit of the ledger": lambda _: exit_thread("ledger"),
    "an error in a callback": break_callback,
    "an exit of the listener": lambda _: exit_thread("paho-mqtt-client"),
}


@app.post("/die/<way>", unknown="Look whether it died.")
def die(service: Service, way: str) -> None:
    """Make a thread die."""
    WAYS[way](service)
