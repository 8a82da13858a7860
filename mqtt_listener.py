"""MQTT in the background: publishes questions, hands over verdicts, and knows how the connection is.

Callbacks run in paho's thread, so they only parse and hand over: they touch no disk and wait for nothing.
Nothing rests on paho's queue or on the broker's. What is lost on the way, the ledger asks again.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Full
from secrets import token_hex
from typing import Any, Self
from uuid import UUID

import msgspec
from paho.mqtt import _packet
from paho.mqtt.client import Client, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode
from prometheus_client.core import Metric

from batch import ask_again, settle
from kit import metrics
from kit.clock import SECOND
from kit.logs import note
from kit.settings import Settings
from ledger import Job
from models import Asked
from schemas import Verdict

log = logging.getLogger(__name__)

QUESTIONS = "EQUIPMENT/VALIDATION"
VERDICTS = "EQUIPMENT/VALIDATION/RESPONSE"
STATUSES = "EQUIPMENT/STATUS/"
# Shared (MQTT 5, section 4.8.2), so that several services each take a part of the verdicts.
SUBSCRIPTIONS = [(f"$share/energy2go/{VERDICTS}", 1), (f"{STATUSES}+", 1)]
KEEPALIVE = 5  # seconds
IN_FLIGHT = 20  # publishes that wait for their PUBACK; a broker may allow fewer (Receive Maximum)
PACKET = 512  # bytes; a question with its topic and properties is well below that
EQUIPMENT = 100  # status topics that are remembered
NO_DELAY = socket.IPPROTO_TCP, socket.TCP_NODELAY, 1  # else Nagle's algorithm adds 40 ms to a hop
PATIENCE = 10  # seconds that the broker may take for SUBACK, and for each PUBACK


class Packed:
    """The properties of a question (MQTT 5, section 3.3.2.3). With paho's, a publish costs twice as much."""

    def __init__(self, seconds: int, correlation: bytes):
        expiry = b"\x02" + seconds.to_bytes(4, "big")
        topic, kind = text(0x08, VERDICTS.encode()), text(0x03, b"application/json")
        packed = expiry + topic + kind + text(0x09, correlation)
        self._packed = bytes([len(packed)]) + packed  # a length below 128 is one byte

    def pack(self) -> bytes:
        """Called by paho."""
        return self._packed


def text(identifier: int, value: bytes) -> bytes:
    """A property that is a string or binary data: both have two bytes of length before them."""
    return bytes([identifier]) + len(value).to_bytes(2, "big") + value


class Received(Properties):
    """The properties of a packet that came. paho builds its tables anew for each; these share one copy.

    We use no property of a PUBLISH, so those are skipped. Together this saves a tenth of the service's CPU.
    """

    _tables = vars(Properties(PacketTypes.PUBLISH))  # type: ignore[no-untyped-call]

    def __init__(self, packet_type: int):
        vars(self).update(self._tables, packetType=packet_type)

    def unpack(self, buffer: bytes) -> tuple[Any, int]:
        """Called by paho; returns the properties and how many bytes they took."""
        if self.packetType != PacketTypes.PUBLISH:
            return super().unpack(buffer)  # type: ignore[no-any-return, no-untyped-call]
        length, size = VariableByteIntegers.decode(buffer)  # type: ignore[no-untyped-call]
        return self, length + size


_packet.Properties = Received  # type: ignore[attr-defined]  # Client has no setting for it
decode_verdict = msgspec.json.Decoder(Verdict).decode


class Connection:
    """One connection, from CONNACK on, within the limits that CONNACK gives (MQTT 5, section 3.2.2.3)."""

    def __init__(self, limits: Any):
        self.qos = min(1, getattr(limits, "MaximumQoS", 1))
        self.slots = threading.Semaphore(min(IN_FLIGHT, getattr(limits, "ReceiveMaximum", IN_FLIGHT)))
        self.waiting: deque[tuple[float, Asked]] = deque()  # since when: what the broker cannot take yet
        self.sent: deque[tuple[float, Asked]] = deque()  # PUBACKs come in the same order (MQTT 5, 4.6)
        self.began = self.last_puback = time.monotonic()
        self.retains = getattr(limits, "RetainAvailable", 1) == 1
        self.subscribed = False


class Listener:
    """Connected while it is entered as a context manager, now and after every loss.

    `problem` is empty while questions can be asked, else one sentence that says why they cannot.
    """

    def __init__(self, settings: Settings, put: Callable[[Job], None]):
        self.equipment: dict[str, str] = {}
        self.unreadable = 0  # messages that were ignored
        self.session = 0  # how often it was subscribed
        self._put = put
        self._broker = f"{settings.mqtt_host}:{settings.mqtt_port}"
        # Why nothing is subscribed, and the last such sentence that was logged.
        self._disconnected = self._logged = f"not connected to {self._broker} yet"
        self._reason = ""  # why this connection is about to end, if we know
        self._refused = ""  # why the broker takes no questions; outlives a connection, until it takes one
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._ended = False  # this connection, or this attempt at one
        # Unique to this process: two with one id would disconnect each other endlessly (MQTT 5, 3.1.4).
        self._client = client = Client(
            CallbackAPIVersion.VERSION2,
            f"energy2go-{os.getpid()}-{token_hex(6)}",
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
        )
        if settings.mqtt_username:
            client.username_pw_set(settings.mqtt_username, settings.mqtt_password)
        if settings.mqtt_ca_file:
            client.tls_set(ca_certs=settings.mqtt_ca_file)
        client.max_inflight_messages_set(0)  # no limit of paho's: ours follows the broker's
        client.reconnect_delay_set(0.1, 2)  # type: ignore[arg-type]  # until it is connected first
        guard = self._guarded
        client.on_pre_connect = guard(lambda *_: self._on_pre_connect())
        client.on_socket_open = guard(lambda _, __, connection: connection.setsockopt(*NO_DELAY))
        unreached = f"{self._broker} cannot be reached"
        client.on_connect_fail = guard(lambda *_: self._say(f"{unreached}: {sys.exception()}"))
        client.on_connect = guard(lambda _, __, flags, code, limits: self._on_connect(code, limits))
        client.on_subscribe = guard(lambda _, __, mid, codes, properties: self._on_subscribe(codes))
        client.on_disconnect = guard(lambda _, __, flags, code, ___: self._on_disconnect(flags, code))
        client.on_publish = guard(lambda _, __, mid, code, properties: self._on_publish(code))
        client.on_message = guard(lambda _, __, message: self._on_message(message))
        client.connect_async(settings.mqtt_host, settings.mqtt_port, KEEPALIVE)

    def __enter__(self) -> Self:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect, and wait at most a second for that to be sent."""
        self._stopping = True  # from here on the end of the thread is no accident
        if self._client.disconnect() == MQTTErrorCode.MQTT_ERR_SUCCESS and self._thread:
            self._thread.join(1)

    @property
    def alive(self) -> bool:
        """False if the thread died. (`Client.is_connected` would still be true.)"""
        return self._stopping or self._thread is None or self._thread.is_alive()

    @property
    def subscribed(self) -> bool:
        """True while questions can be asked and answered."""
        connection = self._connection
        return connection is not None and connection.subscribed

    @property
    def retains(self) -> bool:
        """False if the broker does not keep what the equipment says of itself."""
        connection = self._connection
        return connection is None or connection.retains

    @property
    def problem(self) -> str:
        """Why questions cannot be asked; empty if they can."""
        return "; ".join(filter(None, {self._disconnected: 1, self._refused: 1}))

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        connected = int(not self.problem)
        yield metrics.gauge("energy2go_broker_connected", "1 while questions can be asked", connected)
        online = {name: int(status == "online") for name, status in self.equipment.copy().items()}
        yield metrics.gauge("energy2go_equipment_online", "1 while it says so", online, "equipment")

    # Called by the ledger

    def publish(self, questions: Iterable[Asked]) -> None:
        """Ask these, as fast as the broker takes them. Without a connection, drop them: the rows stay."""
        connection = self._connection
        if connection and connection.subscribed:
            connection.waiting.extend((time.monotonic(), question) for question in questions)
            self._send(connection)

    def held(self, seconds: float) -> list[UUID]:
        """The questions that the broker has not acknowledged for so many seconds, sent or not."""
        connection = self._connection
        if connection is None:
            return []
        held, now = [*connection.sent.copy(), *connection.waiting.copy()], time.monotonic()
        return [question.transaction_id for since, (question, _) in held if since < now - seconds]

    def watch(self) -> None:
        """Hang up if the broker has not answered for PATIENCE seconds."""
        connection, now = self._connection, time.monotonic()
        if connection is None:
            return
        if not connection.subscribed and now - connection.began > PATIENCE:
            self._lose(f"{self._broker} does not answer SUBSCRIBE")
        elif connection.sent and now - connection.last_puback > PATIENCE:
            self._refused = f"{self._broker} does not acknowledge what is published on {QUESTIONS}"
            self._lose(self._refused)

    def _send(self, connection: Connection) -> None:
        """Publish what waits while there are slots. Holds no lock, as paho calls `on_publish` with one."""
        while connection.waiting and connection.slots.acquire(blocking=False):
            try:
                since, (question, backoff) = connection.waiting.popleft()
            except IndexError:  # the other thread was faster; look again, it may have left something
                connection.slots.release()
                continue
            key = question.transaction_id
            properties: Any = Packed(max(1, backoff // SECOND), key.bytes)
            note(log.debug, "transaction_asked", "%(transaction)s is asked", transaction=key)
            if not connection.sent:
                connection.last_puback = time.monotonic()
            connection.sent.append((since, (question, backoff)))
            payload = msgspec.json.encode(question)
            info = self._client.publish(QUESTIONS, payload, connection.qos, properties=properties)
            if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                text = "%(transaction)s was not published; it is asked again"
                note(log.warning, "publish_failed", text, transaction=key)
                return  # the connection is gone, and this window with it

    def _hand_over(self, job: Job) -> None:
        """Give a job to the ledger; drop it if too many wait, since its question will be asked again."""
        try:
            self._put(job)
        except Full:
            if job.then:
                job.then(None)

    def _lose(self, reason: str) -> None:
        """Hang up for this reason. paho notices, calls `on_disconnect`, and connects again after a while."""
        self._reason = reason
        sock: Any = self._client.socket()
        with suppress(OSError):  # it is broken already
            if sock:
                sock.shutdown(socket.SHUT_RDWR)

    def _say(self, sentence: str) -> None:
        """Note how the connection is; empty: questions can be asked. Log it if it is news."""
        self._disconnected = sentence
        if sentence != self._logged:
            self._logged = sentence
            level = logging.WARNING if sentence else logging.INFO
            text = sentence or f"subscribed at {self._broker}"
            log.log(level, "%s", text, extra={"event": "connection_changed"})

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        """A callback whose exceptions cost one reconnect. One that escapes would end paho's thread."""

        def call(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception as error:
                log.exception("an MQTT callback failed; connecting anew", extra={"event": "callback_failed"})
                self._connection = None
                self._disconnected = f"a packet from {self._broker} cannot be handled: {error!r}"
                self._lose(self._disconnected)

        return call

    # Callbacks, in paho's thread

    def _on_pre_connect(self) -> None:
        self._thread = threading.current_thread()
        self._connection, self._reason, self._ended = None, "", False
        self._client._keepalive = KEEPALIVE  # the last broker may have chosen another

    def _on_connect(self, code: ReasonCode, limits: Any) -> None:
        self._client.drop_out_messages()  # paho would send again what was not acknowledged
        # Server Keep Alive may be an hour, or 0 for never: then we would not notice a frozen broker.
        self._client._keepalive = min(self._client._keepalive or KEEPALIVE, KEEPALIVE)
        room = getattr(limits, "MaximumPacketSize", PACKET)
        if code.is_failure:
            self._reason = f"{self._broker} refuses the connection: {code}"
        elif room < PACKET:
            self._lose(f"{self._broker} takes {room} bytes; a question needs up to {PACKET}")
        else:
            self._connection = Connection(limits)
            self._client.reconnect_delay_set(1, 2)
            self._disconnected = f"{self._broker} has not answered SUBSCRIBE yet"
            self._client.subscribe(SUBSCRIPTIONS)

    def _on_subscribe(self, codes: list[ReasonCode]) -> None:
        refusals = [code for code in codes if code.is_failure]
        if refusals:
            self._lose(f"{self._broker} refuses the subscription: {refusals[0]}")
        elif self._connection and not self._connection.subscribed:
            self.session += 1
            self._connection.subscribed = True
            self._say("")
            self._hand_over(Job(ask_again, self.session))

    def _on_disconnect(self, flags: DisconnectFlags, code: ReasonCode) -> None:
        if self._ended:  # paho says it twice when PINGRESP does not come; the second time explains less
            return
        self._ended = True
        connection, self._connection = self._connection, None
        self.equipment.clear()  # the next broker sends all that it retains
        told = flags.is_disconnect_packet_from_server
        strange = code == "Protocol error" or self._client._in_packet["command"]  # all or part of a packet
        if self._stopping:
            self._disconnected = "the service is stopping"
        elif self._reason:
            self._say(self._reason)
        elif connection and connection.subscribed:
            self._say(f"the connection to {self._broker} was lost: {code}")
        elif connection:
            self._say(f"{self._broker} closes the connection instead of answering SUBSCRIBE: {code}")
        elif strange and not told:
            self._say(f"{self._broker} answers with something that is not MQTT 5")
        elif code == "Keep alive timeout" and not told:
            self._say(f"{self._broker} accepts connections but does not answer")
        else:
            self._say(f"{self._broker} closes the connection instead of answering CONNECT: {code}")

    def _on_publish(self, code: ReasonCode) -> None:
        connection = self._connection
        if code.is_failure:
            self._refused = f"{self._broker} refuses what is published on {QUESTIONS}: {code}"
            self._lose(self._refused)
        elif connection and connection.sent:
            self._refused = ""
            connection.sent.popleft()
            connection.last_puback = time.monotonic()
            connection.slots.release()
            self._send(connection)

    def _on_message(self, message: MQTTMessage) -> None:
        connection = self._connection

        def acknowledge() -> None:
            if connection is self._connection:  # else this id may mean another message by now
                self._client.ack(message.mid, message.qos)

        self.receive(message.topic, bytes(message.payload), message.retain, acknowledge)

    def receive(self, topic: str, payload: bytes, retained: bool, acknowledge: Callable[[], None]) -> None:
        """Deal with one message. Every message is acknowledged, a verdict after its commit."""
        try:
            if topic == VERDICTS:
                verdict = decode_verdict(payload)
                text = f"%(transaction)s is answered: {verdict.status}"
                note(log.debug, "transaction_answered", text, transaction=verdict.transaction_id)
                self._hand_over(Job(settle, verdict, lambda _: acknowledge()))
                return
            self._note(topic.removeprefix(STATUSES), payload.decode("ascii"), retained)
        except (ValueError, RecursionError) as error:  # msgspec.DecodeError is a ValueError
            self.unreadable += 1
            about = {"event": "message_ignored"}
            log.warning("ignored on %.80r: %.80s: %r", topic, error, payload[:64], extra=about)
        acknowledge()

    def _note(self, equipment: str, status: str, retained: bool) -> None:
        """Note whether this equipment is there."""
        if status not in ("online", "offline"):
            raise ValueError("neither online nor offline")
        first = equipment not in self.equipment and len(self.equipment) < EQUIPMENT
        if first or equipment in self.equipment:
            self.equipment[equipment] = status
        # A retained message was published before we subscribed, and SUBACK has asked everything again.
        if not retained:
            write, text = log.info if first else log.warning, "equipment %(equipment).80r is %(status)s"
            note(write, "equipment_status", text, equipment=equipment, status=status)
        if status == "online" and not retained:
            self._hand_over(Job(ask_again, 0))
