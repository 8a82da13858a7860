"""The service reloads and stops under load: each request that a client has sent completely is answered."""

import signal
import socket
import threading
import time
from itertools import takewhile

import raw
from programs import wait_until

BODY = b'{"station_id": 1}'
POST = raw.POST.replace(b"stations", b"transactions") + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
# Each request over a new connection, over the same connection, and two at once.
ASKED = POST.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), POST, POST * 2
PAUSE = 0.05  # seconds between an answer and the next request; without it, they would fill a processor


class Clients:
    """Four of each kind send what they ask again and again, until their connection is refused."""

    def __init__(self, port: int):
        self.port, self.answers, self.ends = port, [], []
        self.threads = [threading.Thread(target=self._post, args=[asked]) for asked in ASKED * 4]
        for thread in self.threads:
            thread.daemon = True
            thread.start()

    def _post(self, asked: bytes) -> None:
        try:
            while True:
                with raw.connect(self.port) as connection:
                    while not self._closes(connection, asked):
                        pass
        except OSError as error:
            self.ends.append(type(error))

    def _closes(self, connection, asked: bytes) -> bool:
        """Send what is asked and read the answers; True if the last one announces that it closes."""
        time.sleep(PAUSE)
        connection.sendall(asked)
        with connection.makefile("rb") as lines:
            for _ in range(asked.count(b"POST ")):
                head = b"".join(takewhile(bytes.strip, lines))
                self.answers.append(head[:12])
                lines.read(int(head.partition(b"\r\nContent-Length: ")[2].partition(b"\r")[0] or 0))
        return not head or b"\r\nConnection: close" in head

    def more(self) -> None:
        goal = len(self.answers) + 100
        wait_until(lambda: len(self.answers) > goal, "they post")


def test_the_equipment_may_come_and_a_body_may_be_cut_off_while_it_stops(service, equipment):
    started = service(ready=False)
    wait_until(lambda: started.get("/healthz").status == 200, "it is alive")
    bundle = b"GET /swagger/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    with raw.connect(started.port) as slow, raw.connect(started.port) as cut:
        slow.sendall(bundle * 10)  # and reads nothing
        cut.sendall(POST[:-5])
        assert slow.recv(1)
        started.send(signal.SIGTERM)
        cut.shutdown(socket.SHUT_WR)
        equipment()
        wait_until(lambda: not started.running, "it has stopped")
    assert "Traceback" not in started.said()
    assert "died" not in started.said()


def test_what_was_sent_before_a_reload_and_before_the_end_is_answered(running):
    service = running()
    for number in (signal.SIGTERM, signal.SIGINT):
        clients = Clients(service.port)
        clients.more()
        service.reload()
        wait_until(lambda: len(service.children) == 1, "there is one worker")
        clients.more()
        assert service.stop(number) == 0
        for thread in clients.threads:
            thread.join(60)
        assert set(clients.answers) == {b"HTTP/1.1 201"}
        assert clients.ends == [ConnectionRefusedError] * len(clients.threads)
        assert "being checked" not in service.said()  # the log was in use, not left behind
        service.start()
        wait_until(service.ready, "it is ready again")
