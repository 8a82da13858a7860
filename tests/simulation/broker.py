"""A broker, equipment, and the client that the listener takes for paho's.

They stand for a socket. Each behaviour is shown by the real programs in a system test (see docs/faults.md).
"""

import json
from collections import Counter, deque
from types import SimpleNamespace
from uuid import UUID

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from kit.clock import SECOND
from mqtt_listener import STATUSES, UNACKNOWLEDGED, VERDICTS

# What a good broker and good equipment do.
BEHAVIOUR = {"up": True, "connack": "accept", "suback": "grant", "puback": "late", "delivery": "once"}
BEHAVIOUR |= {"equipment": "honest"}
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
COPIES = {"once": 1, "twice": 2, "lost": 0}
GARBAGE = [b"", b"{", b"[]", b"\xff", b'{"transaction_id": 1}', b'{"status": "DONE"}', b"[" * 99]


class Client:
    """What the listener uses of paho's Client, and its connection as the broker has it.

    `poll` does what paho's thread does.
    """

    def __init__(self, process):
        self.process, self.world, self.broker = process, process.world, process.world.broker
        self.out: deque[tuple[str, int]] = deque()  # keys that were published, without a PUBACK
        self.next_attempt, self.delay, self.goodbyes, self.inside = 0, 0.1, 1, False
        self._in_packet, self._keepalive, self._ssl_context = {"command": 0}, 5, None
        self.connected = self.cut = self.subscribed = False

    def _nothing(self, *_, **__) -> None:
        pass

    connect_async = max_inflight_messages_set = username_pw_set = setsockopt = _nothing

    def reconnect_delay_set(self, lowest: float, _: float) -> None:
        self.delay = lowest

    def socket(self) -> "Client | None":
        return self if self.connected else None

    def shutdown(self, _: int) -> None:
        self.cut = True

    @property
    def open(self) -> bool:
        return self.connected and not self.cut

    def drop_out_messages(self) -> None:
        self.out.clear()

    def subscribe(self, topics: list[tuple[str, int]]) -> None:
        self.process.call("subscribe")
        if self.open:
            self.broker.subscribe(self, len(topics))

    def publish(self, topic: str, payload: bytes, qos: int, properties) -> None:
        self.process.call("publish")
        key = UUID(json.loads(payload)["transaction_id"]).hex
        self.world.rules.published(topic, key)
        self.out.append((key, qos))
        if self.open:
            self._send(key, qos)
            if self.broker.puback == "inside" and not self.inside:
                self.inside = True
                while self.open and self.inbox and self.inbox[0][0] == "puback":
                    self._receive()
                self.inside = False
        self.process.call("published")

    def _send(self, key: str, qos: int) -> None:
        self.unacknowledged += 1
        few = self.unacknowledged <= self.receive_maximum or not qos
        self.world.rules.require(few, "more than the Receive Maximum")
        self.broker.take(self, key, qos)

    def ack(self, mid: int, qos: int) -> None:
        self.process.call("acknowledge")
        if self.open and qos:
            self.world.rules.require(mid in self.outstanding, "acknowledged what was not sent")
            topic, payload, _ = self.outstanding.pop(mid)
            self.world.rules.acknowledged(topic, payload)
        self.process.call("acknowledged")

    # What paho's thread does

    def poll(self) -> None:
        """Connect, notice that the connection is lost, or receive."""
        flow, now = self.broker.flow[self.process.number], self.world.now
        if not self.connected:
            if now >= self.next_attempt:
                self._connect()
        elif self.cut:
            times, self.goodbyes = self.goodbyes, 1
            self._lost(GOODBYE if times > 1 else FLAGS, times)
        elif flow == "stuck" or self.silent:
            self.silent_since = self.silent_since or now
            if now - self.silent_since > PING_TIMEOUT:
                self._lost(FLAGS, times=2)
        else:
            self.silent_since = 0
            for _ in range(min(len(self.inbox), 1 if flow == "slow" else 50)):
                if not self.cut and self.inbox:
                    self._receive()

    def _connect(self) -> None:
        self.process.call("connect")
        self.on_pre_connect(self, None)
        if self.broker.up:
            self.connected, self.cut, self.subscribed = True, False, False
            self.inbox: deque[tuple] = deque()  # what the broker sends, in order
            self.outstanding: dict[int, tuple[str, bytes, int]] = {}  # by mid: what was sent, and when
            self.mid = self.unacknowledged = 0  # questions without a PUBACK
            self.silent_since = 0  # it does not even answer PINGREQ
            self.broker.accept(self)
            self.on_socket_open(self, None, self)
            return
        self.next_attempt = self.world.now + int(self.delay * SECOND)
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError:
            self.on_connect_fail(self, None)

    def _receive(self) -> None:
        kind, *content = self.inbox[0]
        if kind == "publish" and len(self.outstanding) >= UNACKNOWLEDGED:
            return
        self.inbox.popleft()
        self.process.call(kind)
        if kind == "connack":
            code, limits = content
            self.on_connect(self, None, FLAGS, code, limits)
            for key, qos in self.out if code == ACCEPTED else ():
                self._send(key, qos)  # paho sends again what was not acknowledged
            self.cut |= code != ACCEPTED
        elif kind == "suback":
            self.on_subscribe(self, None, 1, content[0], None)
        elif kind == "puback":
            self.unacknowledged -= 1
            if self.out:
                self.world.rules.taken(self.process, self.out.popleft()[0], content[0])
            self.on_publish(self, None, 1, content[0], None)
        else:
            topic, payload, retain = content
            self.mid += 1
            self.outstanding[self.mid] = topic, payload, self.world.now
            message = SimpleNamespace(topic=topic, payload=payload, retain=retain, mid=self.mid, qos=1)
            self.on_message(self, None, message)

    def _lost(self, flags: SimpleNamespace, times: int = 1) -> None:
        self.hang_up()
        self.next_attempt = self.world.now + int(self.delay * SECOND)
        for _ in range(times):
            self.on_disconnect(self, None, flags, LOST, None)

    def hang_up(self) -> None:
        if self.connected:
            self.connected = False
            self.broker.forget(self)


class Broker:
    """A broker and the equipment behind it. Their behaviour is in fields, which events set."""

    def __init__(self, world):
        self.world = world
        self.clients: list[Client] = []  # those that are connected
        self.retained: dict[str, str] = {}
        self.questions: deque[str] = deque()  # on their way to the equipment
        self.asked: list[str] = []  # every question that the equipment ever got
        self.behave()

    def behave(self) -> None:
        vars(self).update(BEHAVIOUR)
        self.flow, self.limits = Counter(), SimpleNamespace()

    def change(self, name: str, value: object) -> None:
        setattr(self, name, value)
        for client in self.clients:
            client.cut |= not self.up

    def accept(self, client: Client) -> None:
        client.receive_maximum = getattr(self.limits, "ReceiveMaximum", 65535)
        client.silent = self.connack == "silent"
        code = REFUSED if self.connack == "refuse" else ACCEPTED
        client.inbox.append(("connack", code, SimpleNamespace(**vars(self.limits))))
        self.clients.append(client)

    def subscribe(self, client: Client, count: int) -> None:
        codes = {"grant": [GRANTED] * count, "refuse": [NOT_GRANTED], "one": [GRANTED], "none": []}
        client.subscribed = self.suback != "refuse"
        if self.suback != "lost":
            client.inbox.append(("suback", codes[self.suback]))
        for name, status in self.retained.items() if count > 1 else ():
            client.inbox.append(("publish", STATUSES + name, status.encode(), True))

    def take(self, client: Client, key: str, qos: int) -> None:
        """A question. For one without QoS, paho calls `on_publish` all the same."""
        self.world.rules.require(client.subscribed, "no question goes out before SUBSCRIBE")
        puback = self.puback if qos else "late"
        if puback != "never":
            client.inbox.append(("puback", QUOTA if puback == "refuse" else TAKEN))
        if puback != "refuse":
            self.questions.extend([key] * COPIES[self.delivery])

    def publish(self, payload: bytes) -> None:
        """Hand a verdict to one of the subscribers (a shared subscription)."""
        subscribed = [client for client in self.clients if client.subscribed and not client.cut]
        for _ in range(COPIES[self.delivery] if subscribed else 0):
            client = subscribed[self.world.random.randrange(len(subscribed))]
            client.inbox.append(("publish", VERDICTS, payload, False))

    def status(self, name: str, status: str) -> None:
        self.retained[name] = status
        for client in self.clients:
            if client.subscribed and not client.cut:
                client.inbox.append(("publish", STATUSES + name, status.encode(), False))

    def forget(self, client: Client) -> None:
        """A connection has ended. Some brokers give its verdicts to another subscriber, some drop them."""
        self.clients.remove(client)
        if self.delivery == "twice":
            waiting = [packet[1:] for packet in client.inbox if packet[0] == "publish"]
            for topic, payload, _ in [*client.outstanding.values(), *waiting]:
                if topic == VERDICTS:
                    self.publish(payload)

    # The equipment

    def poll(self) -> None:
        """Answer questions: all, one, or none; deaf equipment loses them."""
        if self.equipment == "deaf":
            self.questions.clear()
        count = {"honest": len(self.questions), "slow": bool(self.questions)}.get(self.equipment, 0)
        for _ in range(count):
            self.asked.append(self.questions.popleft())
            self.answer(self.asked[-1])

    def answer(self, key: str, other: bool = False) -> None:
        """Its verdict depends on the transaction only, but some equipment lies."""
        status = "COMPLETED" if (int(key[-1], 16) % 3 > 0) != other else "ERROR"
        self.world.rules.sent.add((key, status))
        self.publish(json.dumps({"transaction_id": str(UUID(key)), "status": status}).encode())
