"""Additions to paho: cheaper properties, and a sentence for each broker that we can't use."""

from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode


class Packed:
    """Request properties (MQTT 5, section 3.3.2.3). paho's own make a publish twice as expensive."""

    def __init__(self, seconds: int, response_topic: str, correlation: bytes):
        packed = b"\x02" + seconds.to_bytes(4, "big")  # Message Expiry Interval
        # Response Topic, Content Type, Correlation Data
        for identifier, value in (8, response_topic.encode()), (3, b"application/json"), (9, correlation):
            packed += bytes([identifier]) + len(value).to_bytes(2, "big") + value
        self._packed = bytes([len(packed)]) + packed  # a length below 128 is one byte

    def pack(self) -> bytes:
        """Called by paho."""
        return self._packed


class Received(Properties):
    """Properties in a received packet. paho builds its tables for each packet; these share one copy.

    We use none in a PUBLISH, so we only decode them on access.
    """

    _tables = vars(Properties(PacketTypes.PUBLISH))  # type: ignore[no-untyped-call]

    def __init__(self, packet_type: int):
        vars(self).update(self._tables, packetType=packet_type)

    def unpack(self, buffer: bytes) -> tuple[Any, int]:
        """Called by paho; returns the properties and how many bytes they took."""
        if self.packetType != PacketTypes.PUBLISH:
            return super().unpack(buffer)  # type: ignore[no-any-return, no-untyped-call]
        vars(self)["_packed"] = buffer
        length, size = VariableByteIntegers.decode(buffer)  # type: ignore[no-untyped-call]
        return self, length + size

    def __getattr__(self, name: str) -> Any:
        if (packed := vars(self).pop("_packed", None)) is None:
            raise AttributeError(name)
        super().unpack(packed)  # type: ignore[no-untyped-call]
        return getattr(self, name)


def unusable(code: ReasonCode, limits: Any, packet: int) -> str:
    """Why we can't use a broker that sends this CONNACK, or "" (MQTT 5, section 3.2.2.3)."""
    if code.is_failure:
        added = [getattr(limits, name, "")[:100] for name in ("ReasonString", "ServerReference")]
        return ", ".join([f"refuses the connection: {code}", *(repr(words) for words in added if words)])
    room = getattr(limits, "MaximumPacketSize", packet)
    if room < packet:
        return f"takes {room} bytes; a question needs up to {packet}"
    shared = getattr(limits, "SharedSubscriptionAvailable", 1)
    return "" if shared else "does not offer shared subscriptions, which we need"


def lost(broker: str, awaited: str, code: ReasonCode, is_packet: bool, is_cut: bool) -> str:
    """Why a connection ended. `awaited` is the packet that the broker had not answered, if any.

    `code` is the broker's if it sent DISCONNECT (`is_packet`), else paho's. `is_cut`: a packet had begun.
    """
    if not awaited:
        return f"the connection to {broker} was lost: {code}"
    if awaited == "CONNECT" and not is_packet:
        if is_cut or code == "Protocol error":
            return f"{broker} answers with something that is not MQTT 5"
        if code == "Keep alive timeout":
            return f"{broker} accepts connections but does not answer"
    return f"{broker} closes the connection instead of answering {awaited}: {code}"
