"""A load on a port until SIGTERM, and then what became of it: `docker_load.py PORT`.

It ends with 0 if every request was answered with 201, and every transaction has a verdict that can be read.
"""

import signal
import sys

from load import Load
from programs import HttpServer, wait_until


class Server(HttpServer):
    """A server that someone else has started."""

    def __init__(self, port: int):
        self.port, self.url = port, f"http://127.0.0.1:{port}"


def settled(server: Server, key: str) -> bool:
    """True once this transaction has its verdict."""
    answer = server.get(f"/transactions/{key}")
    return answer.status == 200 and answer.json["status"] in ("COMPLETED", "ERROR")


def main() -> None:
    server = Server(int(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    load = Load(server, clients=8, pause=0.01).start()
    signal.sigwait([signal.SIGTERM])
    load.stop()
    for key in load.accepted:
        wait_until(lambda key=key: settled(server, key), f"{key} is settled", 60)
    print(f"accepted {len(load.accepted)}, by status {dict(load.statuses)}, no answer {len(load.broken)}")
    sys.exit(bool(load.broken or load.statuses.keys() - {201}) or not load.accepted)


if __name__ == "__main__":
    main()
