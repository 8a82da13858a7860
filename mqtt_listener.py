"""MQTT in the background: publishes questions, hands over verdicts, and knows the state of the connection.

Callbacks run in paho's thread, so they only parse and hand over: they touch no disk and never wait.
We rely on neither paho's queue nor the broker's: the ledger asks again.
"""

import logging
import os
import re
import socket
import ssl
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from secrets import token_hex
from typing import Annotated, Any, Self
from uuid import UUID

import msgspec
from msgspec import Meta
from paho.mqtt import _packet
from paho.mqtt.client import Client, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from prometheus_client.core import Metric

from batch import ask_again, settle
from kit import metrics
from kit.clock import SECOND, Clock
from kit.errors import Unavailable
from kit.logs import note
from kit.mqtt import Packed, Received, lost, unusable
from kit.settings import Settings
from ledger import Job
from models import Asked
from schemas import NO_NUL, Response, Verdict

log = logging.getLogger(__name__)

QUESTIONS = "EQUIPMENT/VALIDATION"
VERDICTS = "EQUIPMENT/VALIDATION/RESPONSE"
STATUSES = "EQUIPMENT/STATUS/"
# Shared (MQTT 5, section 4.8.2), so that several services divide the verdicts.
SUBSCRIPTIONS = [(f"$share/energy2go/{VERDICTS}", 1), (f"{STATUSES}+", 1)]
KEEPALIVE = 5  # seconds
IN_FLIGHT = 20  # publishes that wait for their PUBACK; a broker may allow fewer (Receive Maximum)
PACKET = 512  # bytes; a question with its topic and properties is well below that
UNACKNOWLEDGED = 1_000  # our Receive Maximum: the broker keeps all verdicts past it
EQUIPMENT, NAME = 100, 200  # how many names we remember; characters in a name
NO_DELAY = socket.IPPROTO_TCP, socket.TCP_NODELAY, 1  # otherwise Nagle's algorithm adds 40 ms to a hop
ACK_TIMEOUT = 10 * SECOND  # for SUBACK, and for each PUBACK
ESCAPES = re.compile(rb"(?i)\\\\|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(\\ud[89a-f][0-9a-f]{2})")
LONGEST = 255  # characters in a verdict's reason and in its equipment
# Of JSON: texts, opening and closing brackets, and the rest.
TOKENS = re.compile(rb'(?s)"(?:[^"\\]|\\.)*"?|[\[{]+|[\]}]+|[^\]\[{}"]+')
decode_response = msgspec.json.Decoder(Response).decode
decode_text = msgspec.json.Decoder(Annotated[str, Meta(pattern=NO_NUL)] | None).decode


class Connection:
    """One connection, within the limits that CONNACK gives (MQTT 5, section 3.2.2.3)."""

    def __init__(self, awaited: str = "CONNECT", limits: Any = None, now: int = 0):
        self.awaited = awaited  # our packet without an answer yet; "" once we are subscribed
        self.qos = min(1, getattr(limits, "MaximumQoS", 1))
        self.slots = threading.Semaphore(min(IN_FLIGHT, getattr(limits, "ReceiveMaximum", IN_FLIGHT)))
        self.waiting: deque[tuple[int, Asked]] = deque()  # not sent yet, and since when
        self.sent: deque[tuple[int, Asked]] = deque()  # PUBACKs come in the same order (MQTT 5, 4.6)
        self.owed_since = now  # SUBACK, or the next PUBACK
        self.answered = False  # a verdict has come since equipment last went offline


class Listener:
    """Connected while it is entered as a context manager, now and after every loss.

    `problem` is one sentence while we can't ask questions, otherwise empty.
    """

    def __init__(self, settings: Settings, put: Callable[[Job], None], clock: Clock, client: Any = Client):
        self.equipment: dict[str, str] = {}  # its status by name; the latest news is at the end
        self.knows_equipment = True  # False if this broker doesn't forward all statuses
        self.unreadable = 0  # messages that were ignored
        self.session = 0  # how often it was subscribed
        self._put, self._clock = put, clock
        self._broker = f"{settings.mqtt_host}:{settings.mqtt_port}"
        self._ca_file = settings.mqtt_ca_file
        self._reported = f"not connected to {self._broker} yet"  # "" after SUBACK
        self._reason = ""  # why this connection is about to end, if we know
        self._refused = ""  # why the broker takes no questions; outlives a connection, until it takes one
        self._connection = Connection()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._again: Job | None = None  # the last job that asks again after an `online`
        _packet.Properties = Received  # type: ignore[attr-defined]  # a Client has no setting for it
        # The id is unique to this process: two with one id would disconnect each other (MQTT 5, 3.1.4).
        name, version = f"energy2go-{os.getpid()}-{token_hex(6)}", CallbackAPIVersion.VERSION2
        self._client: Client = client(version, name, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True)
        self._set_callbacks(self._client)
        if settings.mqtt_username:
            self._client.username_pw_set(settings.mqtt_username, settings.mqtt_password)
        ours = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        ours.ReceiveMaximum, address = UNACKNOWLEDGED, (settings.mqtt_host, settings.mqtt_port)
        self._client.connect_async(*address, KEEPALIVE, clean_start=True, properties=ours)

    def _set_callbacks(self, client: Client) -> None:
        client.max_inflight_messages_set(0)  # no limit of paho's: ours follows the broker's
        client.reconnect_delay_set(0.1, 2)  # type: ignore[arg-type]  # until it is connected first
        guard = self._guarded
        # Only from this callback, paho takes an OSError as a failed attempt.
        client.on_pre_connect = guard(lambda *_: self._on_pre_connect(), OSError)
        client.on_socket_open = guard(lambda _, __, connection: connection.setsockopt(*NO_DELAY))
        client.on_connect_fail = guard(lambda *_: self._on_connect_fail())
        client.on_connect = guard(lambda _, __, flags, code, limits: self._on_connect(code, limits))
        client.on_subscribe = guard(lambda _, __, mid, codes, properties: self._on_subscribe(codes))
        client.on_disconnect = guard(lambda _, __, flags, code, ___: self._on_disconnect(flags, code))
        client.on_publish = guard(lambda _, __, mid, code, properties: self._on_publish(code))
        client.on_message = guard(lambda _, __, message: self._on_message(message))

    def __enter__(self) -> Self:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect, and wait at most a second for that to be sent."""
        self._stopping = True  # from here on the thread may end
        self._reason = self._reported = "the service is stopping"
        if self._client.disconnect() == MQTTErrorCode.MQTT_ERR_SUCCESS and self._thread:
            self._thread.join(1)

    @property
    def alive(self) -> bool:
        """False if the thread died. (`Client.is_connected` would still be true.)"""
        return self._stopping or self._thread is None or self._thread.is_alive()

    @property
    def subscribed(self) -> bool:
        """True while questions can be asked and answered."""
        return not self._connection.awaited

    @property
    def served(self) -> bool:
        """True if some equipment works: it is online, or a verdict has come since one went offline."""
        return self._connection.answered or "online" in self.equipment.values()

    @property
    def problem(self) -> str:
        """Why we can't ask questions; empty if we can."""
        if self._connection.awaited == "CONNECT":
            return self._reported
        if self._refused or self.subscribed:
            return self._refused
        return f"{self._broker} has not answered SUBSCRIBE yet"

    def collect(self) -> Iterator[Metric]:
        """Gauges for the connection and the equipment."""
        connected = int(not self.problem)
        yield metrics.gauge("energy2go_broker_connected", "1 while questions can be asked", connected)
        online = {name: int(status == "online") for name, status in self.equipment.items()}
        yield metrics.gauge("energy2go_equipment_online", "1 while it is online", online, "equipment")

    # Called by the ledger

    def publish(self, questions: Iterable[Asked]) -> None:
        """Ask these, as fast as the broker accepts them. Without a connection, drop them: the rows stay."""
        connection, now = self._connection, self._clock.steady()
        if not connection.awaited:
            connection.waiting.extend((now, question) for question in questions)
            self._send(connection)

    def held(self, microseconds: int) -> list[UUID]:
        """The questions that the broker has not acknowledged for this long, sent or not."""
        connection, before = self._connection, self._clock.steady() - microseconds
        held = [*connection.sent.copy(), *connection.waiting.copy()]
        return [question.transaction_id for since, (question, _) in held if since < before]

    def watch(self) -> None:
        """Hang up if the broker hasn't answered for ACK_TIMEOUT."""
        connection = self._connection
        if self._clock.steady() - connection.owed_since < ACK_TIMEOUT:
            return
        if connection.awaited == "SUBSCRIBE":
            self._lose(f"{self._broker} does not answer SUBSCRIBE")
        elif connection.sent:
            self._refused = f"{self._broker} does not acknowledge what is published on {QUESTIONS}"
            self._lose(self._refused)

    def _send(self, connection: Connection) -> None:
        """Publish while there are questions and slots. Hold no lock: paho calls `on_publish` with one."""
        while connection.waiting and connection.slots.acquire(blocking=False):
            try:
                since, (question, backoff) = connection.waiting.popleft()
            except IndexError:  # the other thread was faster; look again, it may have left something
                connection.slots.release()
                continue
            key = question.transaction_id
            properties: Any = Packed(max(1, backoff // SECOND), VERDICTS, key.bytes)
            note(log.debug, "transaction_asked", "%(transaction)s is asked", transaction=key)
            if not connection.sent:
                connection.owed_since = self._clock.steady()
            connection.sent.append((since, (question, backoff)))
            payload = msgspec.json.encode(question)
            # If this fails, the connection is gone, and this window with it.
            self._client.publish(QUESTIONS, payload, connection.qos, properties=properties)

    def _lose(self, reason: str) -> None:
        """Hang up for this reason. paho notices, calls `on_disconnect`, and connects again after a while."""
        self._reason = reason
        sock: Any = self._client.socket()
        with suppress(OSError):  # it is broken already
            if sock:
                sock.shutdown(socket.SHUT_RDWR)

    def _report(self, sentence: str) -> None:
        """Note why we are disconnected, or "" once we are subscribed. Log it if it is news."""
        if sentence != self._reported:
            self._reported = sentence
            level = logging.WARNING if sentence else logging.INFO
            text = sentence or f"subscribed at {self._broker}"
            log.log(level, "%s", text, extra={"event": "connection_changed"})

    def _guarded(self, callback: Callable[..., None], *passes: type[Exception]) -> Callable[..., None]:
        """A callback whose exceptions cost one reconnect. One that escapes would end paho's thread."""

        def call(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except passes:
                raise
            except Exception as error:
                log.exception("an MQTT callback failed; connecting anew", extra={"event": "callback_failed"})
                self._lose(f"a packet from {self._broker} cannot be handled: {error!r}")
                self._end(self._reason)

        return call

    def _end(self, reason: str) -> None:
        """Forget the connection. The next broker sends all that it retains about equipment."""
        self._report(reason)
        self._connection, self.equipment = Connection(), {}

    # Callbacks, in paho's thread

    def _on_pre_connect(self) -> None:
        self._thread = threading.current_thread()
        self._reason = ""
        self._client._keepalive = KEEPALIVE  # the last broker may have chosen another
        if self._ca_file:  # read for each connection, as it may have been renewed
            try:
                context = ssl.create_default_context(cafile=self._ca_file)
            except OSError as error:
                text = f"MQTT_CA_FILE={self._ca_file} cannot be read: {error.strerror or error}"
                raise OSError(text) from error
            self._client._ssl_context = None  # otherwise paho refuses another
            self._client.tls_set_context(context)

    def _on_connect_fail(self) -> None:
        self._report(f"{self._broker} cannot be reached: {sys.exception()}")

    def _on_connect(self, code: ReasonCode, limits: Any) -> None:
        client = self._client
        client.drop_out_messages()  # paho would send unacknowledged messages again
        client.reconnect_delay_set(1, 2)
        # Server Keep Alive may be an hour, or 0 for never: then we wouldn't notice a frozen broker.
        client._keepalive = min(client._keepalive or KEEPALIVE, KEEPALIVE)
        if problem := unusable(code, limits, PACKET):
            self._lose(f"{self._broker} {problem}")
        else:
            self._connection = Connection("SUBSCRIBE", limits, self._clock.steady())
            wildcards = getattr(limits, "WildcardSubscriptionAvailable", 1) == 1
            self.knows_equipment = wildcards and getattr(limits, "RetainAvailable", 1) == 1
            client.subscribe(SUBSCRIPTIONS if wildcards else SUBSCRIPTIONS[:1])

    def _on_subscribe(self, codes: list[ReasonCode]) -> None:
        if refusals := [code for code in codes if code.is_failure]:
            self._lose(f"{self._broker} refuses the subscription: {refusals[0]}")
        elif self._connection.awaited == "SUBSCRIBE":
            self.session += 1
            self._connection.awaited = ""
            self._report("")
            self._put(Job(ask_again, self.session))

    def _on_disconnect(self, flags: DisconnectFlags, code: ReasonCode) -> None:
        """paho calls this twice if PINGRESP doesn't come. The first call explains more."""
        awaited, cut = self._connection.awaited, self._client._in_packet["command"] != 0
        packet = flags.is_disconnect_packet_from_server
        self._reason = self._reason or lost(self._broker, awaited, code, packet, cut)
        self._end(self._reason)

    def _on_publish(self, code: ReasonCode) -> None:
        connection = self._connection
        if code.is_failure:
            self._refused = f"{self._broker} refuses what is published on {QUESTIONS}: {code}"
            self._lose(self._refused)
        elif connection.sent:
            self._refused = ""
            connection.sent.popleft()
            connection.owed_since = self._clock.steady()
            connection.slots.release()
            self._send(connection)

    def _on_message(self, message: MQTTMessage) -> None:
        connection = self._connection

        def acknowledge() -> None:
            if connection is self._connection:  # else this id may mean another message by now
                self._client.ack(message.mid, message.qos)

        self.receive(message.topic, bytes(message.payload), message.retain, acknowledge)

    def receive(self, topic: str, payload: bytes, retained: bool, acknowledge: Callable[[], None]) -> None:
        """Handle one message. We acknowledge every message, a verdict after its commit."""
        try:
            if topic == VERDICTS:
                self._settle(read_verdict(payload), acknowledge)
                return
            self._note(topic.removeprefix(STATUSES), payload.decode("ascii"), retained)
        except (ValueError, RecursionError) as error:  # msgspec.DecodeError is a ValueError
            self.unreadable += 1
            about = {"event": "message_ignored"}
            log.warning("ignored on %.80r: %.80s: %r", topic, error, payload[:64], extra=about)
        acknowledge()

    def _settle(self, verdict: Verdict, acknowledge: Callable[[], None]) -> None:
        """Hand a verdict to the ledger. Don't acknowledge it if it can't be stored."""

        def done(result: Any) -> None:
            if not isinstance(result, Unavailable):
                acknowledge()

        text = f"%(transaction)s is answered: {verdict.status}"
        note(log.debug, "transaction_answered", text, transaction=verdict.transaction_id)
        self._connection.answered = True
        self._put(Job(settle, verdict, done))

    def _note(self, name: str, status: str, retained: bool) -> None:
        """Note this equipment's status. Past EQUIPMENT names, forget the oldest `offline`."""
        if not 0 < len(name) <= NAME:
            raise ValueError(f"the name does not have 1 to {NAME} characters")
        if status not in ("online", "offline", ""):
            raise ValueError("neither online nor offline")
        write = log.warning if name in self.equipment else log.info
        known = {other: said for other, said in self.equipment.items() if other != name}
        known |= {name: status} if status else {}  # the broker no longer retains its status
        if len(known) > EQUIPMENT:
            known.pop(next((other for other, said in known.items() if said == "offline"), name))
        self.equipment = known  # a new dictionary, as other threads read it
        if retained:  # published before we subscribed, and then we asked everything again
            return
        text = "equipment %(equipment).80r is %(status)s"
        note(write, "equipment_status", text, equipment=name, status=status or "forgotten")
        self._connection.answered &= status == "online"
        if status == "online" and (self._again is None or self._again.taken):
            self._again = Job(ask_again, 0)
            self._put(self._again)


def read_verdict(payload: bytes) -> Verdict:
    """A verdict, without texts that can't be stored; raises ValueError."""
    try:
        try:
            response = decode_response(payload)
        except msgspec.DecodeError:
            response = decode_response(whole(payload))
    except RecursionError:
        response = decode_response(whole(shallow(payload)))
    key, texts = response.transaction_id, list[str | None]()
    for field, raw in (("reason", response.reason), ("equipment", response.equipment)):
        text = None
        try:
            text = decode_text(raw)
        except ValueError:
            words = "the %(field)s of %(transaction)s is ignored: no text, or it has NUL or half a character"
            note(log.warning, "text_ignored", words, field=field, transaction=key)
        texts.append((text or "")[:LONGEST] or None)
    return Verdict(key, response.status, *texts)


def whole(payload: bytes) -> bytes:
    """JSON with NUL in place of half a surrogate pair, which is JSON but no text (perhaps it was cut)."""
    return ESCAPES.sub(lambda found: rb"\u0000" if found[1] else found[0], payload)


def shallow(payload: bytes) -> bytes:
    """A JSON object with 0 in place of each object and array inside it, as the decoder stops at 1,000."""
    kept, depth = list[bytes](), 0
    for token in TOKENS.findall(payload):
        if token[0] in b"[{":
            kept += [token[:1]] * (depth == 0) + [b"0"] * (depth < 2 <= depth + len(token))
            depth += len(token)
        elif token[0] in b"]}":
            depth -= len(token)
            kept += [token[-1:]] * (depth == 0)
        elif depth == 1:
            kept.append(token)
    return b"".join(kept)
