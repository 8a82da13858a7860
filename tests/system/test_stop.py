"""The service stops under load: what a client has sent is answered, and the next connection is refused."""

import json
import socket
import threading

import raw
from programs import wait_until

BODY = json.dumps({"station_id": 1}).encode()
HEAD = b"POST /transactions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
POST = HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
CLIENTS = 8


class Clients:
    """Each posts over a new connection again and again, until it is refused."""

    def __init__(self, port: int):
        self.port, self.answers, self.ends = port, [], []
        self.threads = [threading.Thread(target=self._post, daemon=True) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _post(self) -> None:
        try:
            while True:
                with socket.create_connection(("127.0.0.1", self.port), 20) as connection:
                    connection.sendall(POST)
                    self.answers.append(raw.answer(connection)[:12])
        except OSError as error:
            self.ends.append(type(error))


def test_what_was_sent_before_the_end_is_answered(running):
    service = running()
    clients = Clients(service.port)
    wait_until(lambda: len(clients.answers) > 200, "they post")
    assert service.stop() == 0
    for thread in clients.threads:
        thread.join(30)
    assert set(clients.ends) == {ConnectionRefusedError}
    assert set(clients.answers) == {b"HTTP/1.1 201"}
