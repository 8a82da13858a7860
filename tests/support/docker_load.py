"""Clients for the tests of containers: `docker_load.py post|break|wait PORT`.

`post` sends transactions until SIGTERM, with a line for each hundred that were accepted. Then each of them
must have its verdict, nothing else may be stored, and every answer must have been a 201. With `break` the
server may go away, so requests may get no answer. `wait` sends 1,000 that wait for their verdict.
"""

import json
import os
import signal
import sys
import threading

from idle import WAIT, Crowd
from kit.server import connections
from load import Load
from programs import HttpServer, wait_until
from raw import answer

BEARER = {"Authorization": f"Bearer {os.environ['API_TOKEN']}"} if os.environ.get("API_TOKEN") else {}


class Server(HttpServer):
    """A server that someone else has started."""

    def __init__(self, port: int):
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def request(self, method: str, path: str, body=None, timeout: float = 40, **headers):
        return super().request(method, path, body, timeout, **headers, **BEARER)


def stored(server: Server, station: int) -> dict[str, str]:
    """The status of every transaction of a station, by id."""
    found, url = {}, f"/transactions?station_id={station}&limit=100"
    while url:
        page = server.get(url).json
        found |= {item["id"]: item["status"] for item in page["items"]}
        url = page["next"]
    return found


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
    wait_until(lambda: "PENDING" not in stored(server, station).values(), "nothing is PENDING", 60)
    found = stored(server, station)
    lost, untold = set(load.accepted) - found.keys(), found.keys() - set(load.accepted)
    expired = [key for key, status in found.items() if status == "EXPIRED"]
    print(f"{len(load.accepted)} accepted, {dict(load.statuses)}, {len(load.broken)} without an answer")
    print(f"{len(lost)} lost, {len(untold)} stored without an answer, {len(expired)} expired")
    bad = load.statuses.keys() - {201} or (load.broken and not may_break)
    return bool(load.accepted) and not (lost or untold or expired or bad)


def wait(server: Server) -> bool:
    """True if 1,000 at once all get their verdict."""
    connections()  # each client takes a descriptor here, too
    answers = []
    with Crowd(server) as crowd:
        for connection in crowd.open(1000, WAIT):
            connection.settimeout(60)
            head, _, body = answer(connection).partition(b"\r\n\r\n")
            answers.append((b"Preference-Applied" in head, json.loads(body).get("status")))
    print({each: answers.count(each) for each in set(answers)})
    return all(waited and status in ("COMPLETED", "ERROR") for waited, status in answers)


if __name__ == "__main__":
    command, port = sys.argv[1:]
    server = Server(int(port))
    sys.exit(not (wait(server) if command == "wait" else post(server, command == "break")))
