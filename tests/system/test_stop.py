"""The service reloads and stops under load: each request that a client has sent completely is answered."""

import json
import signal
import socket
import threading
import time
from itertools import takewhile

import raw
from installation import children
from programs import wait_until

BODY = json.dumps({"station_id": 1}).encode()
POST = raw.POST.replace(b"stations", b"transactions") + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
CLIENTS = 16
PAUSE = 0.05  # seconds between an answer and the next request; without it, they would fill a processor


ASKED = {
    "each over a new connection": POST.replace(b"\r\n", b"\r\nConnection: close\r\n", 1),
    "over the same connection": POST,
    "two at once": POST * 2,
}


class Clients:
    """Each sends what is `asked` again and again, until its connection is refused."""

    def __init__(self, port: int, asked: bytes):
        self.port, self.asked, self.answers, self.ends = port, asked, [], []
        self.threads = [threading.Thread(target=self._post, daemon=True) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _post(self) -> None:
        try:
            while True:
                with socket.create_connection(("127.0.0.1", self.port), 60) as connection:
                    while not self._closes(connection):
                        pass
        except OSError as error:
            self.ends.append(type(error))

    def _closes(self, connection: socket.socket) -> bool:
        """Send what is asked and read the answers; True if the last one announces that it closes."""
        time.sleep(PAUSE)
        connection.sendall(self.asked)
        with connection.makefile("rb") as lines:
            for _ in range(self.asked.count(b"POST ")):
                head = b"".join(takewhile(bytes.strip, lines))
                self.answers.append(head[:12])
                lines.read(int(head.partition(b"\r\nContent-Length: ")[2].partition(b"\r")[0] or 0))
        return not head or b"\r\nConnection: close" in head

    def more(self) -> None:
        goal = len(self.answers) + 100
        wait_until(lambda: len(self.answers) > goal, "they post")


def test_what_was_sent_before_a_reload_and_before_the_end_is_answered(running):
    service = running()
    clients = [Clients(service.port, asked) for asked in ASKED.values()]
    for _ in range(2):
        for some in clients:
            some.more()
        (old,) = children(service.pid)
        service.send(signal.SIGHUP)
        wait_until(lambda gone=old: gone not in children(service.pid), "the old worker has gone")
        wait_until(lambda: len(children(service.pid)) == 1, "there is one worker")
    for some in clients:
        some.more()
    assert service.stop() == 0
    for some in clients:
        for thread in some.threads:
            thread.join(60)
        assert set(some.answers) == {b"HTTP/1.1 201"}
        assert some.ends == [ConnectionRefusedError] * CLIENTS
    assert "being checked" not in service.said()  # the log was in use, not left behind
