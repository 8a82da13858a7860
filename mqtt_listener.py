"""MQTT in the background: publishes questions, hands verdicts to the ledger, and says how the connection is.

Callbacks run in paho's thread, so they only parse and hand over: no disk, no waiting, no lock that `publish` holds.
Nothing rests on paho's own queue or on the broker's. What the wire loses, the ledger asks again.
"""

import logging
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial

import msgspec
from paho.mqtt.client import CallbackAPIVersion, Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from uuid_utils import uuid4

from jobs import Verdict
from ledger import Ledger
from models import SECOND, WINDOW, Question
from schemas import Question as QuestionPayload
from schemas import Status
from schemas import Verdict as VerdictPayload
from settings import Settings

log = logging.getLogger(__name__)

QUESTIONS = "EQUIPMENT/VALIDATION"
VERDICTS = "EQUIPMENT/VALIDATION/RESPONSE"
STATUSES = "EQUIPMENT/STATUS/"
# Shared (MQTT 5, section 4.8.2), so that several services each take a part of the verdicts.
SUBSCRIPTIONS = [(f"$share/energy2go/{VERDICTS}", 1), (f"{STATUSES}+", 1)]
KEEPALIVE = 5  # seconds
IN_FLIGHT = 20  # unacknowledged publishes: Mosquitto's default Receive Maximum, which paho does not read
EQUIPMENTS = 100  # statuses that are remembered

PROPERTIES = Properties(PacketTypes.PUBLISH)  # of every question
PROPERTIES.ResponseTopic = VERDICTS
PROPERTIES.ContentType = "application/json"

decode_verdict = msgspec.json.Decoder(VerdictPayload).decode


class Listener:
    """Made empty; `start` binds and connects it. `trouble` is empty, or says why questions cannot be asked now."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._client = self._thread = None

    def start(self, settings: Settings) -> None:
        """Connect in the background, now and after every loss, until `stop`; never fails because of the broker."""
        self.counts = Counter()
        self.equipment: dict[str, str] = {}
        self._broker = f"{settings.mqtt_host}:{settings.mqtt_port}"
        self.trouble = f"not connected to {self._broker} yet"
        # Unique to this process: two with one id would disconnect each other for ever (MQTT 5, section 3.1.4).
        client_id = f"energy2go-{os.getpid()}-{uuid4().hex[:12]}"
        client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTv5, manual_ack=True)
        if settings.mqtt_username:
            client.username_pw_set(settings.mqtt_username, settings.mqtt_password)
        if settings.mqtt_ca_file:
            client.tls_set(ca_certs=settings.mqtt_ca_file)
        client.max_inflight_messages_set(IN_FLIGHT)
        client.max_queued_messages_set(2 * WINDOW)
        client.reconnect_delay_set(1, 2)
        client.on_pre_connect = self._on_pre_connect
        client.on_socket_open = self._on_socket_open
        client.on_connect_fail = self._on_connect_fail
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.connect_async(settings.mqtt_host, settings.mqtt_port, KEEPALIVE)
        client.loop_start()
        self._client = client

    def stop(self) -> None:
        """Disconnect, and wait a second at most for that to be sent."""
        thread, self._thread = self._thread, None  # from here on its end is no death
        if self._client and self._client.disconnect() == MQTTErrorCode.MQTT_ERR_SUCCESS and thread:
            thread.join(1)

    @property
    def alive(self) -> bool:
        """False if the thread died; `Client.is_connected` would still be true then."""
        return self._thread is None or self._thread.is_alive()

    def publish(self, questions: Iterable[Question]) -> None:
        """Ask these. While not subscribed, nothing is published: paho would send it later, and the row is there."""
        for question in questions:
            if not self._ledger.subscribed:
                return
            properties = copy(PROPERTIES)  # made from scratch, they would cost as much as the rest of publishing
            properties.MessageExpiryInterval = max(1, question.backoff // SECOND)
            properties.CorrelationData = question.transaction_id.bytes
            log.debug("%(transaction)s is asked", {"transaction": question.transaction_id})
            payload = msgspec.json.encode(QuestionPayload(question.transaction_id, question.station_id))
            info = self._client.publish(QUESTIONS, payload, qos=1, properties=properties)
            if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                log.warning("a question could not be published, it will be asked again: %s", info.rc.name)

    def receive(self, topic: str, payload: bytes, retained: bool, acknowledge: Callable[[], None]) -> None:
        """Deal with one message; whatever it is, `acknowledge` is called, a verdict's after its commit."""
        try:
            if topic == VERDICTS:
                verdict = decode_verdict(payload)
                fields = {"transaction": verdict.transaction_id, "status": verdict.status}
                log.debug("%(transaction)s is answered: %(status)s", fields)
                self._ledger.settle(Verdict(verdict.transaction_id, Status(verdict.status), acknowledge))
                return
            self._note(topic.removeprefix(STATUSES), payload.decode("ascii"), retained)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            self._ignore(topic, payload, error)
        acknowledge()

    def _note(self, equipment: str, status: str, retained: bool) -> None:
        if status not in ("online", "offline"):
            raise ValueError("neither online nor offline")
        if equipment in self.equipment or len(self.equipment) < EQUIPMENTS:
            self.equipment[equipment] = status
        # A retained message was published before this subscribed, and SUBACK has already asked everything again.
        if status == "online" and not retained:
            self._ledger.rearm()

    def _ignore(self, topic: str, payload: bytes, error: Exception) -> None:
        """Count what cannot be read, and show the start of it."""
        self.counts["unreadable"] += 1
        log.warning("ignored on %.80r: %.80s: %r", topic, error, payload[:64])

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            log.log(logging.WARNING if trouble else logging.INFO, "%s", trouble or f"subscribed at {self._broker}")

    # Callbacks

    def _on_pre_connect(self, client, userdata):
        self._thread = threading.current_thread()
        self._answered = False

    def _on_socket_open(self, client, userdata, sock):
        # Without this, Nagle's algorithm and delayed ACKs add 40 ms to a hop.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect_fail(self, client, userdata):
        self._say(f"{self._broker} cannot be reached: {sys.exception()}")

    def _on_connect(self, client, userdata, flags, reason_code, properties):
        self._answered = True
        if reason_code.is_failure:
            self._say(f"{self._broker} refuses the connection: {reason_code}")
        else:
            client.subscribe(SUBSCRIPTIONS)

    def _on_subscribe(self, client, userdata, mid, reason_codes, properties):
        refused = [topic for (topic, _), code in zip(SUBSCRIPTIONS, reason_codes, strict=True) if code.is_failure]
        if refused:
            self._say(f"{self._broker} refuses the subscription to {refused[0]}")
            client.socket().shutdown(socket.SHUT_RDWR)  # connect anew, after the usual delay
            return
        self._say("")
        self._ledger.refused = False
        self._ledger.subscribed = True
        self._ledger.rearm()

    def _on_disconnect(self, client, userdata, flags, reason_code, properties):
        subscribed, self._ledger.subscribed = self._ledger.subscribed, False
        if self._thread is None:
            self._say("stopped")
        elif subscribed:
            self._say(f"the connection to {self._broker} was lost: {reason_code}")
        elif not self._answered:
            self._say(f"{self._broker} accepts connections but does not answer")

    def _on_publish(self, client, userdata, mid, reason_code, properties):
        if reason_code.is_failure:
            self._ledger.refused = True
            self._say(f"{self._broker} refuses what is published on {QUESTIONS}: {reason_code}")
        elif self._ledger.refused:
            self._ledger.refused = False
            self._say("")
            self._ledger.rearm()

    def _on_message(self, client, userdata, message: MQTTMessage):
        acknowledge = partial(client.ack, message.mid, message.qos)
        try:
            self.receive(message.topic, message.payload, message.retain, acknowledge)
        except Exception:
            # What escapes a callback would end paho's thread.
            log.exception("a message was not dealt with")
            acknowledge()
