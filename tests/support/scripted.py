"""A scripted broker: speaks real MQTT 5 on a real socket, and does to its clients what a test tells it."""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from programs import ACCOUNTS, wait_until

CONNECT, CONNACK, PUBLISH, PUBACK = 1, 2, 3, 4
SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = 8, 9, 12, 13, 14
QUESTION, ANSWER, STATUS = "EQUIPMENT/VALIDATION", "EQUIPMENT/VALIDATION/RESPONSE", "EQUIPMENT/STATUS/"


@dataclass
class Packet:
    """What a client sent. Each kind of packet fills in the fields that it has."""

    kind: int
    size: int
    id: int = 0
    reason: int = 0
    properties: dict = field(default_factory=dict)
    topic: str = ""
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    dup: bool = False
    topics: list[str] = field(default_factory=list)
    client_id: str = ""
    keepalive: int = 0
    clean_start: bool = False
    will: "Packet | None" = None


class Reader:
    """Takes the fields of a packet off its bytes, from the front."""

    def __init__(self, data: bytes):
        self.data = data

    def take(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def number(self, size: int = 2) -> int:
        return int.from_bytes(self.take(size), "big")

    def binary(self) -> bytes:
        return self.take(self.number())

    def properties(self, kind: int) -> dict:
        found = Properties(kind)
        _, size = found.unpack(self.data)
        self.take(size)
        names = [found.getNameFromIdent(ident).replace(" ", "") for ident in found.properties]
        return {name: getattr(found, name) for name in names if hasattr(found, name)}


def packed(kind: int, properties: dict) -> bytes:
    """Properties as they are on the wire, with their length; named as paho names them: ReceiveMaximum=1."""
    made = Properties(kind)
    for name, value in properties.items():
        setattr(made, name, value)
    return made.pack()


def packet(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    """A whole packet."""
    size, length = len(body), b""
    while size > 127:
        length, size = length + bytes([size % 128 | 128]), size // 128
    return bytes([kind << 4 | flags]) + length + bytes([size]) + body


PING_RESPONSE = packet(PINGRESP)
PACKETS = {"connect": CONNECT, "subscribe": SUBSCRIBE, "publish": PUBLISH, "ping": PINGREQ}


def parse(kind: int, flags: int, body: bytes, size: int) -> Packet:
    """The fields of a packet that a client sent."""
    read, result = Reader(body), Packet(kind, size)
    if kind == CONNECT:
        read.take(7)  # the protocol's name and version
        connect_flags, result.keepalive = read.number(1), read.number()
        result.clean_start = bool(connect_flags & 2)
        result.properties = read.properties(PacketTypes.CONNECT)
        result.client_id = read.binary().decode()
        if connect_flags & 4:
            result.will = Packet(PUBLISH, 0, qos=connect_flags >> 3 & 3, retain=bool(connect_flags & 32))
            result.will.properties = read.properties(PacketTypes.WILLMESSAGE)
            result.will.topic, result.will.payload = read.binary().decode(), read.binary()
    elif kind == PUBLISH:
        result.qos, result.retain, result.dup = flags >> 1 & 3, bool(flags & 1), bool(flags & 8)
        result.topic = read.binary().decode()
        result.id = read.number() if result.qos else 0
        result.properties = read.properties(PacketTypes.PUBLISH)
        result.payload = read.data
    elif kind == SUBSCRIBE:
        result.id, result.properties = read.number(), read.properties(PacketTypes.SUBSCRIBE)
        while read.data:
            result.topics.append(read.binary().decode())
            read.take(1)
    elif kind == PUBACK:
        result.id, result.reason = read.number(), read.number(1)
    elif kind == DISCONNECT:
        result.reason = read.number(1)
    return result


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

    def disconnect(self, reason: int = 0) -> None:
        """Send DISCONNECT with a reason, and close."""
        self.send(packet(DISCONNECT, bytes([reason, 0])))
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.may_read.set()

    def reset(self) -> None:
        """Close without the good manners of TCP."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def read(self) -> Packet | None:
        """The next packet, or None at the end."""
        head = self.socket.recv(1)
        self.may_read.wait()
        if not head:
            return None
        length, shift, size = 0, 0, 1
        while True:
            byte = self.exactly(1)[0]
            length, shift, size = length | (byte & 127) << shift, shift + 7, size + 1
            if byte < 128:
                return parse(head[0] >> 4, head[0] & 15, self.exactly(length), size + length)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the client closed in the middle of a packet")
            data += more
        return data


# Reactions


def nothing(connection: Connection, packet: Packet) -> None:
    """Leave the packet without an answer."""


def hang_up(connection: Connection, packet: Packet) -> None:
    """Close the connection instead of answering."""
    connection.close()


def connack(reason: int = 0, **properties) -> Callable:
    """Answer CONNECT with this reason and these properties."""
    return lambda connection, packet: connection.connack(reason, **properties)


def suback(*codes: int) -> Callable:
    """Answer SUBSCRIBE with these codes, however many topics it has."""
    return lambda connection, packet: connection.suback(packet.id, list(codes))


def puback(reason: int) -> Callable:
    """Answer PUBLISH with this reason."""
    return lambda connection, packet: connection.puback(packet.id, reason)


def sends(data: bytes) -> Callable:
    """Answer with these bytes."""
    return lambda connection, packet: connection.send(data)


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


def take_and_confirm(connection: Connection, packet: Packet) -> None:
    """Take a question as the broker does, and answer it as the equipment would."""
    if packet.qos:
        connection.puback(packet.id)
    confirm(connection, packet)


class ScriptedBroker:
    """Answers as a broker should, except where a test gives its own reaction.

    A reaction is a function of connection and packet: `ScriptedBroker(connect=connack(ReceiveMaximum=1))`.
    One that does nothing leaves the packet without an answer. `accept` is called with the connection before
    anything is read. An exception in a reaction fails the test at the end of the `with`.
    """

    def __init__(self, port: int = 0, **reactions: Callable):
        self.connections, self.failures, self.threads = [], [], []
        self.usual = {
            "connect": connack(),
            "subscribe": lambda connection, packet: connection.suback(packet.id, [1] * len(packet.topics)),
            "publish": lambda connection, packet: packet.qos and connection.puback(packet.id),
            "ping": sends(PING_RESPONSE),
        }
        self.becomes(**reactions)
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.environment_of_clients = {"MQTT_HOST": "127.0.0.1", "MQTT_PORT": str(self.port)} | ACCOUNTS

    def becomes(self, **reactions: Callable) -> None:
        """Behave like this from now on: the present connections are closed, and the next ones meet this."""
        self.accept = reactions.pop("accept", lambda connection: None)
        self.reactions = {PACKETS[name]: reaction for name, reaction in (self.usual | reactions).items()}
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
                    self.reactions.get(read.kind, lambda *_: None)(connection, read)
        except Exception as failure:
            self.failures.append(failure)
        finally:
            connection.closed = True
            connection.socket.close()

    def __exit__(self, *_):
        self.close()
        if self.failures:
            raise self.failures[0]

    def close(self) -> None:
        """Close the port and all connections, and wait until they are closed."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.threads[0].join(10)
        for connection in self.connections:
            connection.close()
        for thread in self.threads:
            thread.join(10)
