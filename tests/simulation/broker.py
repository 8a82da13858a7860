"""A broker, equipment, and the client that the listener takes for paho's.

They stand for a socket. Each behaviour is shown by the real programs in a system test (see README.md).
"""

import json
from collections import Counter, deque
from types import SimpleNamespace
from uuid import UUID

from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from kit.clock import SECOND
from mqtt_listener import QUESTIONS, STATUSES, UNACKNOWLEDGED, VERDICTS

# What a good broker does.
BEHAVIOUR = {"up": True, "connack": "accept", "suback": "grant", "puback": "late", "delivery": "once"}
FLAGS = SimpleNamespace(is_disconnect_packet_from_server=False)
GOODBYE = SimpleNamespace(is_disconnect_packet_from_server=True)
ACCEPTED = ReasonCode(PacketTypes.CONNACK, identifier=0)
REFUSED = ReasonCode(PacketTypes.CONNACK, identifier=0x88)  # Server unavailable
GRANTED = ReasonCode(PacketTypes.SUBACK, identifier=1)
NOT_GRANTED = ReasonCode(PacketTypes.SUBACK, identifier=0x87)
TAKEN = ReasonCode(PacketTypes.PUBACK, identifier=0)
QUOTA = ReasonCode(PacketTypes.PUBACK, identifier=0x97)
LOST = ReasonCode(PacketTypes.DISCONNECT, identifier=0x80)
PING_TIMEOUT = 10 * SECOND  # paho notices a broker that is frozen
GARBAGE = [b"", b"{", b"[]", b"\xff", b'{"transaction_id": 1}', b'{"status": "DONE"}', b"[" * 99]


class Link:
    """One connection as the broker has it, and what it will send, in order."""

    def __init__(self, receive_maximum: int, silent: bool):
        self.receive_maximum, self.silent = receive_maximum, silent
        self.inbox: deque[tuple] = deque()
        self.subscribed = self.cut = False
        self.unacknowledged = 0  # questions without a PUBACK
        self.outstanding: dict[
            int, tuple[str, bytes, int]
        ] = {}  # by mid: what the client was sent, and when
        self.mid = 0
        self.silent_since: int | None = None  # it does not even answer PINGREQ

    def setsockopt(self, *_: int) -> None:
        pass

    def shutdown(self, _: int) -> None:
        self.cut = True


class Client:
    """What the listener uses of paho's Client. `poll` does what paho's thread does."""

    def __init__(self, process):
        self.process, self.world, self.broker = process, process.world, process.world.broker
        self.link: Link | None = None
        self.started = False
        self.next_attempt, self.delay = 0, 0.1
        self.out: deque[tuple[bytes, int]] = deque()  # published, without a PUBACK
        self._in_packet = {"command": 0}
        self._keepalive, self._ssl_context, self._publishing, self.goodbyes = 5, None, False, 1

    def connect_async(self, *_, **__) -> None:
        pass

    max_inflight_messages_set = username_pw_set = connect_async

    def reconnect_delay_set(self, lowest: float, _: float) -> None:
        self.delay = lowest

    def loop_start(self) -> None:
        self.started = True

    def socket(self) -> Link | None:
        return self.link

    def drop_out_messages(self) -> None:
        self.out.clear()

    def subscribe(self, topics: list[tuple[str, int]]) -> None:
        self.process.call("subscribe")
        if self.link and not self.link.cut:
            self.broker.subscribe(self.link, len(topics))

    def publish(self, topic: str, payload: bytes, qos: int, properties) -> None:
        assert topic == QUESTIONS
        self.process.call("publish")
        self.world.rules.published(self.process, UUID(json.loads(payload)["transaction_id"]).hex)
        self.out.append((payload, qos))
        if self.link and not self.link.cut:
            self._send(payload, qos)
            if self.broker.puback == "inside" and not self._publishing and self.link.inbox:
                self._publishing = True
                try:
                    while self.link and self.link.inbox and self.link.inbox[0][0] == "puback":
                        self._receive(self.link)
                finally:
                    self._publishing = False
        self.process.call("published")

    def _send(self, payload: bytes, qos: int) -> None:
        self.link.unacknowledged += 1
        if qos == 0:  # paho calls `on_publish` all the same
            self.link.inbox.append(("puback", TAKEN))
            self.broker.forward(payload)
        else:
            self.world.rules.require(
                self.link.unacknowledged <= self.link.receive_maximum, "more than the Receive Maximum"
            )
            self.broker.take(self.link, payload)

    def ack(self, mid: int, qos: int) -> None:
        self.process.call("acknowledge")
        if self.link and not self.link.cut and qos:
            self.world.rules.require(mid in self.link.outstanding, "acknowledged what was not sent")
            topic, payload, _ = self.link.outstanding.pop(mid)
            self.world.rules.acknowledged(self.process, topic, payload)
        self.process.call("acknowledged")

    def disconnect(self) -> MQTTErrorCode:
        return MQTTErrorCode.MQTT_ERR_NO_CONN

    # What paho's thread does

    def poll(self) -> None:
        """Connect, notice that the connection is lost, or receive."""
        link = self.link
        if link is None:
            if self.started and self.world.now >= self.next_attempt:
                self._connect()
        elif link.cut:
            times, self.goodbyes = self.goodbyes, 1
            self._lost(GOODBYE if times > 1 else FLAGS, times)
        elif self.broker.flow[self.process.number] == "stuck" or link.silent:
            link.silent_since = link.silent_since or self.world.now
            if self.world.now - link.silent_since > PING_TIMEOUT:
                self._lost(FLAGS, times=2)
        else:
            link.silent_since = None
            slow = self.broker.flow[self.process.number] == "slow"
            for _ in range(min(len(link.inbox), 1 if slow else 50)):
                if self.link is link and not link.cut and link.inbox:
                    self._receive(link)

    def _connect(self) -> None:
        self.process.call("connect")
        self.on_pre_connect(self, None)
        self.link = self.broker.accept()
        if self.link is None:
            self.next_attempt = self.world.now + int(self.delay * SECOND)
            try:
                raise ConnectionRefusedError(111, "Connection refused")
            except OSError:
                self.on_connect_fail(self, None)
        else:
            self.on_socket_open(self, None, self.link)

    def _receive(self, link: Link) -> None:
        kind, *content = link.inbox[0]
        if kind == "publish" and len(link.outstanding) >= UNACKNOWLEDGED:
            return
        link.inbox.popleft()
        self.process.call(kind)
        if kind == "connack":
            code, limits = content
            self.on_connect(self, None, FLAGS, code, limits)
            for payload, qos in self.out if code == ACCEPTED else ():
                self._send(payload, qos)  # paho sends again what was not acknowledged
            if code != ACCEPTED:
                link.cut = True
        elif kind == "suback":
            self.on_subscribe(self, None, 1, content[0], None)
        elif kind == "puback":
            link.unacknowledged -= 1
            if self.out:
                self.out.popleft()
            self.on_publish(self, None, 1, content[0], None)
        else:
            topic, payload, retain = content
            link.mid += 1
            link.outstanding[link.mid] = topic, payload, self.world.now
            message = SimpleNamespace(topic=topic, payload=payload, retain=retain, mid=link.mid, qos=1)
            self.on_message(self, None, message)

    def _lost(self, flags: SimpleNamespace, times: int = 1) -> None:
        link, self.link = self.link, None
        self.broker.forget(link)
        self.next_attempt = self.world.now + int(self.delay * SECOND)
        for _ in range(times):
            self.on_disconnect(self, None, flags, LOST, None)


class Broker:
    """What it does with the next packets is in its fields, which events set."""

    def __init__(self, world):
        self.world = world
        self.links: list[Link] = []
        self.retained: dict[str, str] = {}
        self.questions: deque[str] = deque()  # on their way to the equipment
        self.behave()

    def behave(self) -> None:
        vars(self).update(BEHAVIOUR)
        self.flow, self.limits = Counter(), SimpleNamespace()

    def change(self, name: str, value: object) -> None:
        setattr(self, name, value)
        if not self.up:
            for link in self.links:
                link.cut = True

    def accept(self) -> Link | None:
        if not self.up:
            return None
        link = Link(getattr(self.limits, "ReceiveMaximum", 65535), self.connack == "silent")
        code = REFUSED if self.connack == "refuse" else ACCEPTED
        link.inbox.append(("connack", code, SimpleNamespace(**vars(self.limits))))
        self.links.append(link)
        return link

    def subscribe(self, link: Link, count: int) -> None:
        codes = {"grant": [GRANTED] * count, "refuse": [NOT_GRANTED], "one": [GRANTED], "none": []}
        link.subscribed = self.suback != "refuse"
        if self.suback != "lost":
            link.inbox.append(("suback", codes[self.suback]))
        for name, status in self.retained.items() if count > 1 else ():
            link.inbox.append(("publish", STATUSES + name, status.encode(), True))

    def take(self, link: Link, payload: bytes) -> None:
        """A question that was published with QoS 1."""
        self.world.rules.require(link.subscribed, "no question goes out before SUBSCRIBE")
        if self.puback != "never":
            link.inbox.append(("puback", QUOTA if self.puback == "refuse" else TAKEN))
        if self.puback != "refuse":
            self.forward(payload)

    def forward(self, payload: bytes) -> None:
        copies = {"once": 1, "twice": 2, "lost": 0}[self.delivery]
        self.questions.extend([UUID(json.loads(payload)["transaction_id"]).hex] * copies)

    def verdict(self, payload: bytes) -> None:
        """Hand it to one of the subscribers (a shared subscription)."""
        subscribed = [link for link in self.links if link.subscribed and not link.cut]
        for _ in range({"once": 1, "twice": 2, "lost": 0}[self.delivery]):
            if subscribed:
                link = subscribed[self.world.random.randrange(len(subscribed))]
                link.inbox.append(("publish", VERDICTS, payload, False))

    def status(self, name: str, status: str) -> None:
        self.retained[name] = status
        for link in self.links:
            if link.subscribed and not link.cut:
                link.inbox.append(("publish", STATUSES + name, status.encode(), False))

    def forget(self, link: Link) -> None:
        """A connection has ended. Some brokers give its verdicts to another subscriber, some drop them."""
        self.links.remove(link)
        if self.delivery == "twice":
            waiting = [packet[1:] for packet in link.inbox if packet[0] == "publish"]
            for topic, payload, _ in [*link.outstanding.values(), *waiting]:
                if topic == VERDICTS:
                    self.verdict(payload)


class Equipment:
    """Its verdict depends on the transaction only, but some equipment lies."""

    def __init__(self, world):
        self.world, self.mode = world, "honest"
        self.asked: list[str] = []  # every question that it ever got

    def poll(self) -> None:
        questions = self.world.broker.questions
        count = {"honest": len(questions), "slow": min(1, len(questions)), "silent": 0, "deaf": 0}[self.mode]
        if self.mode == "deaf":
            questions.clear()
        for _ in range(count):
            self.asked.append(questions.popleft())
            self.answer(self.asked[-1])

    def answer(self, key: str, other: bool = False) -> None:
        confirms = (int(key[-1], 16) % 3 > 0) != other
        status = "COMPLETED" if confirms else "ERROR"
        self.world.rules.sent.add((key, status))
        text = {"transaction_id": str(UUID(key)), "status": status}
        self.world.broker.verdict(json.dumps(text).encode())
