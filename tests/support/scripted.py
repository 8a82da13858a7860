"""A scripted broker: speaks real MQTT 5 on a real socket, and does to its clients what a test tells it."""

import contextlib
import io
import json
import socket
import struct
import threading
from collections.abc import Callable
from types import SimpleNamespace

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers

from programs import ACCOUNTS, wait_until

CONNECT, CONNACK, PUBLISH, PUBACK = 1, 2, 3, 4
SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = 8, 9, 12, 13, 14
QUESTION, ANSWER, STATUS = "EQUIPMENT/VALIDATION", "EQUIPMENT/VALIDATION/RESPONSE", "EQUIPMENT/STATUS/"


class Packet(SimpleNamespace):
    """What a client sent: its `kind`, its `size`, and the fields that this kind has (see `parse`)."""


def parse(head: int, body: bytes, size: int) -> Packet:
    """The fields of a packet, from its first byte and what follows its length."""
    rest, found = io.BytesIO(body), Packet(kind=head >> 4, size=size)

    def number(size: int = 2) -> int:
        return int.from_bytes(rest.read(size), "big")

    def binary() -> bytes:
        return rest.read(number())

    def properties(kind: int) -> dict:
        read = Properties(kind)
        rest.seek(read.unpack(body[rest.tell() :])[1], io.SEEK_CUR)
        return read.json()

    if found.kind == CONNECT:
        rest.read(7)  # the protocol's name and version
        flags, found.keepalive, found.will = number(1), number(), None
        found.clean_start = bool(flags & 2)
        found.properties, found.client_id = properties(PacketTypes.CONNECT), binary().decode()
        if flags & 4:
            properties(PacketTypes.WILLMESSAGE)
            found.will = binary().decode(), binary(), flags >> 3 & 3, bool(flags & 32)
    elif found.kind == PUBLISH:
        found.qos, found.retain, found.dup = head >> 1 & 3, bool(head & 1), bool(head & 8)
        found.topic, found.id = binary().decode(), number() if found.qos else 0
        found.properties = properties(PacketTypes.PUBLISH)
        found.payload = rest.read()
    elif found.kind == SUBSCRIBE:
        found.id, found.topics = number(), []
        properties(PacketTypes.SUBSCRIBE)
        while topic := binary():
            found.topics.append(topic.decode())
            rest.read(1)
    elif found.kind == PUBACK:
        found.id = number()
    elif found.kind == DISCONNECT:
        found.reason = number(1)
    return found


def packed(kind: int, properties: dict) -> bytes:
    """Properties as they are on the wire, with their length; named as paho names them: ReceiveMaximum=1."""
    made = Properties(kind)
    for name, value in properties.items():
        setattr(made, name, value)
    return made.pack()


def packet(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    """A whole packet."""
    return bytes([kind << 4 | flags]) + VariableByteIntegers.encode(len(body)) + body


class Connection:
    """One connection of a client: `packets` is what it sent, and the methods send something to it."""

    def __init__(self, client: socket.socket):
        self.socket, self.packets, self.closed, self.last_id = client, [], False, 0
        self.may_read = threading.Event()  # clear it, and this connection is no longer read
        self.may_read.set()

    def received(self, kind: int) -> list[Packet]:
        return [packet for packet in self.packets if packet.kind == kind]

    def published(self, topic: str) -> list[Packet]:
        return [packet for packet in self.received(PUBLISH) if packet.topic == topic]

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def connack(self, reason: int = 0, **properties) -> None:
        self.send(packet(CONNACK, bytes([0, reason]) + packed(PacketTypes.CONNACK, properties)))

    def suback(self, packet_id: int, codes: list[int]) -> None:
        self.send(packet(SUBACK, struct.pack(">HB", packet_id, 0) + bytes(codes)))

    def puback(self, packet_id: int, reason: int = 0) -> None:
        self.send(packet(PUBACK, struct.pack(">HBB", packet_id, reason, 0)))

    def publish(self, topic: str, payload: bytes, qos: int = 1, **properties) -> None:
        self.last_id += 1
        head = struct.pack(">H", len(topic.encode())) + topic.encode()
        head += struct.pack(">H", self.last_id) if qos else b""
        self.send(packet(PUBLISH, head + packed(PacketTypes.PUBLISH, properties) + payload, qos << 1))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.may_read.set()

    def read(self) -> Packet | None:
        """The next packet, or None at the end."""
        head = self.socket.recv(1)
        self.may_read.wait()
        if not head:
            return None
        size = self.exactly(1)
        while size[-1] > 127:
            size += self.exactly(1)
        length = VariableByteIntegers.decode(size)[0]
        return parse(head[0], self.exactly(length), 1 + len(size) + length)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the client closed in the middle of a packet")
            data += more
        return data


# Reactions: functions of the connection and the packet that came


def nothing(connection: Connection, packet: Packet) -> None:
    """Leave the packet without an answer."""


def hang_up(connection: Connection, packet: Packet) -> None:
    """Close the connection instead of answering."""
    connection.close()


def grant(connection: Connection, packet: Packet) -> None:
    """Grant all that a SUBSCRIBE asks for."""
    connection.suback(packet.id, [1] * len(packet.topics))


def connack(reason: int = 0, **properties) -> Callable:
    """Answer CONNECT with this reason and these properties."""
    return lambda connection, packet: connection.connack(reason, **properties)


def suback(*codes: int) -> Callable:
    """Answer SUBSCRIBE with these codes, however many topics it has."""
    return lambda connection, packet: connection.suback(packet.id, list(codes))


def puback(reason: int = 0) -> Callable:
    """Answer PUBLISH with this reason, if it wants an answer."""
    return lambda connection, packet: packet.qos and connection.puback(packet.id, reason)


def sends(data: bytes) -> Callable:
    """Answer with these bytes."""
    return lambda connection, packet: connection.send(data)


def disconnect(reason: int) -> Callable:
    """Answer with DISCONNECT, and close."""
    return both(sends(packet(DISCONNECT, bytes([reason, 0]))), hang_up)


def both(*reactions: Callable) -> Callable:
    """Do one after the other."""
    return lambda connection, packet: [reaction(connection, packet) for reaction in reactions]


def in_turn(*reactions: Callable) -> Callable:
    """Do another one each time, and in the end always the last one."""
    left = list(reactions)
    return lambda connection, packet: (left.pop(0) if len(left) > 1 else left[0])(connection, packet)


def confirm(connection: Connection, packet: Packet) -> None:
    """Answer a question as the equipment would: confirm it."""
    verdict = {"transaction_id": json.loads(packet.payload)["transaction_id"], "status": "COMPLETED"}
    connection.publish(ANSWER, json.dumps(verdict).encode())


USUAL = {CONNECT: connack(), SUBSCRIBE: grant, PUBLISH: puback(), PINGREQ: sends(packet(PINGRESP))}
PACKETS = {"connect": CONNECT, "subscribe": SUBSCRIBE, "publish": PUBLISH, "ping": PINGREQ}
take_and_confirm = both(puback(), confirm)


class ScriptedBroker:
    """Answers as a broker should, except where a test gives its own reaction.

    `ScriptedBroker(connect=connack(ReceiveMaximum=1))`. `accept` is called with the connection before
    anything is read. An exception in a reaction fails the test at the end of the `with`.
    """

    def __init__(self, port: int = 0, **reactions: Callable):
        self.connections, self.failures, self.threads = [], [], []
        self.becomes(**reactions)
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.environment_of_clients = {"MQTT_HOST": "127.0.0.1", "MQTT_PORT": str(self.port)} | ACCOUNTS

    def becomes(self, **reactions: Callable) -> None:
        """Behave like this from now on: the present connections are closed, and the next ones meet this."""
        self.accept = reactions.pop("accept", lambda connection: None)
        self.reactions = USUAL | {PACKETS[name]: reaction for name, reaction in reactions.items()}
        for connection in list(self.connections):  # not those that come now
            connection.close()

    @property
    def newest(self) -> Connection:
        return self.connections[-1]

    def connection(self, number: int = 1) -> Connection:
        """The connection with this number, once it is there."""
        wait_until(lambda: len(self.connections) >= number, f"connection {number}")
        return self.connections[number - 1]

    def __enter__(self):
        self.start(self.listen)
        return self

    def start(self, target: Callable, *arguments) -> None:
        self.threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self.threads[-1].start()

    def listen(self) -> None:
        with contextlib.suppress(OSError):  # the end
            while True:
                client, _ = self.listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections.append(Connection(client))
                self.start(self.serve, self.connections[-1])

    def serve(self, connection: Connection) -> None:
        try:
            with contextlib.suppress(OSError):  # the client, or the test, closed the connection
                self.accept(connection)
                while read := connection.read():
                    connection.packets.append(read)
                    self.reactions.get(read.kind, nothing)(connection, read)
        except Exception as failure:
            self.failures.append(failure)
        finally:
            connection.closed = True
            connection.socket.close()

    def __exit__(self, *_):
        """Close the port and all connections, and wait until they are closed."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.threads[0].join(10)
        for connection in self.connections:
            connection.close()
        for thread in self.threads:
            thread.join(10)
        if self.failures:
            raise self.failures[0]
