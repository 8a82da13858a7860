"""The service as tests break it: one route kills a thread, and no worker starts while ABSENT is there."""

import ctypes
import os
import threading

from app import Service, app

if os.path.exists(os.environ.get("ABSENT", "/nothing")):
    raise OSError("something is away")


def exit_thread(name: str) -> None:
    """Raise SystemExit in the thread whose name begins with `name`; Python ends such a thread silently."""
    for thread in threading.enumerate():
        if thread.name.startswith(name):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )


def break_ledger(service: Service) -> None:
    service.ledger._next_round = "never"


WAYS = {
    "an error in the ledger": break_ledger,
    "an exit of the listener": lambda _: exit_thread("paho-mqtt-client"),
}


@app.post("/die/<way>", unknown="Look whether it died.")
def die(service: Service, way: str) -> None:
    """Make a thread die."""
    WAYS[way](service)
