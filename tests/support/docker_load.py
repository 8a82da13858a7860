"""Clients for the tests of containers: `docker_load.py post|break PORT`.

They send transactions until SIGTERM, and print a line for each hundred that were accepted. Then each of them
must have its verdict, nothing else may be stored, and every answer must have been a 201. With `break` the
server may go away, so requests may get no answer.
"""

import os
import signal
import sys
import threading

from installation import Server, every_transaction
from load import Load
from programs import wait_until

BEARER = {"Authorization": f"Bearer {os.environ['API_TOKEN']}"} if os.environ.get("API_TOKEN") else {}


def post(server: Server, may_break: bool) -> bool:
    """True if nothing was lost, and nothing is stored that no client was told."""
    station = server.post("/stations", {"description": "Teste"}).json["id"]
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    load, told = Load(server, clients=8, pause=0.01, station=station, **BEARER).start(), 0
    while not ended.wait(0.1):
        if len(load.accepted) >= told + 100:
            told += 100
            print(f"accepted {told}", flush=True)
    load.stop()
    mine = f"&station_id={station}"
    wait_until(lambda: not every_transaction(server, f"{mine}&status=PENDING"), "nothing is PENDING")
    found = {item["id"]: item["status"] for item in every_transaction(server, mine)}
    lost, untold = set(load.accepted) - found.keys(), found.keys() - set(load.accepted)
    expired = [key for key, status in found.items() if status == "EXPIRED"]
    print(f"{len(load.accepted)} accepted, {dict(load.statuses)}, {len(load.broken)} without an answer")
    print(f"{len(lost)} lost, {len(untold)} stored without an answer, {len(expired)} expired")
    bad = load.statuses.keys() - {201} or (load.broken and not may_break)
    return bool(load.accepted) and not (lost or untold or expired or bad)


if __name__ == "__main__":
    command, port = sys.argv[1:]
    sys.exit(not post(Server(int(port), **BEARER), command == "break"))
