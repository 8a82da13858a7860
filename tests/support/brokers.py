"""Brokers that do not do what a broker should, and what the service and the equipment say of each."""

from typing import NamedTuple

from scripted import (
    CONNACK,
    CONNECT,
    Connection,
    both,
    confirm,
    connack,
    hang_up,
    nothing,
    packet,
    puback,
    sends,
    suback,
)

STRANGE = "answers with something that is not MQTT 5"
INSTEAD = "closes the connection instead of answering"
HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n"


class Says(NamedTuple):
    """What a broker does, and words of what we say then; "" if this is not asked."""

    reactions: dict
    service: str
    equipment: str


def disconnect(reason: int):
    return lambda connection, packet: connection.disconnect(reason)


CLOSED = "the broker closed the connection"
SAYS = {
    "accepts and never speaks": Says(
        {"connect": nothing}, "accepts connections but does not answer", "the broker does not answer"
    ),
    "closes at once": Says({"accept": Connection.close}, f"{INSTEAD} CONNECT", CLOSED),
    "resets at once": Says({"accept": Connection.reset}, f"{INSTEAD} CONNECT", CLOSED),
    "HTTP": Says({"connect": both(sends(HTTP), hang_up)}, STRANGE, STRANGE),
    "SSH, and stays": Says({"connect": sends(b"SSH-2.0-OpenSSH_9.2p1\r\n")}, STRANGE, STRANGE),
    "CONNACK of MQTT 3.1.1: accepted": Says({"connect": sends(packet(CONNACK, b"\0\0"))}, "", STRANGE),
    "CONNACK of MQTT 3.1.1: version": Says(
        {"connect": sends(packet(CONNACK, b"\0\1"))}, "Unsupported protocol version", STRANGE
    ),
    "CONNACK of MQTT 3.1.1": Says({"connect": sends(packet(CONNACK, b"\0\5"))}, STRANGE, STRANGE),
    "CONNACK: an unknown reason": Says({"connect": connack(5)}, STRANGE, STRANGE),
    "CONNACK: not authorized": Says(
        {"connect": connack(0x87, ReasonString="no licence")},
        "refuses the connection: Not authorized, 'no licence'",
        "refuses the connection: Not authorized",
    ),
    "CONNACK: server unavailable": Says(
        {"connect": both(connack(0x88), hang_up)}, "Server unavailable", "Server unavailable"
    ),
    "CONNACK: no shared subscriptions": Says(
        {"connect": connack(SharedSubscriptionAvailable=0)},
        "does not offer shared subscriptions, which we need",
        "does not offer shared subscriptions, which we need",
    ),
    "CONNACK: packets of 100 bytes": Says(
        {"connect": connack(MaximumPacketSize=100)}, "takes 100 bytes; a question needs up to 512", ""
    ),
    "DISCONNECT instead of CONNACK": Says({"connect": disconnect(0x8D)}, f"{INSTEAD} CONNECT", ""),
    "connection closed after CONNACK": Says({"connect": both(connack(), hang_up)}, INSTEAD, CLOSED),
    "connection closed on SUBSCRIBE": Says({"subscribe": hang_up}, f"{INSTEAD} SUBSCRIBE", CLOSED),
    "SUBSCRIBE is never answered": Says(
        {"subscribe": nothing}, "does not answer SUBSCRIBE", "the broker does not answer"
    ),
    "DISCONNECT instead of SUBACK": Says(
        {"subscribe": disconnect(0x8B)}, "SUBSCRIBE: Server shutting down", f"{CLOSED}: Server shutting down"
    ),
    "SUBACK refuses": Says(
        {"subscribe": suback(0x87)}, "refuses the subscription", "refuses the subscription: Not authorized"
    ),
    "SUBACK refuses one of two": Says(
        {"subscribe": suback(1, 0x87)}, "refuses the subscription: Not", "refuses the subscription: Not"
    ),
    "SUBACK: an unknown code": Says({"subscribe": suback(7, 1)}, "SUBSCRIBE: Protocol error", ""),
    "PUBACK: not authorized": Says(
        {"publish": puback(0x87)}, "refuses what is published on EQUIPMENT/VALIDATION: Not authorized", ""
    ),
    "PUBACK: quota exceeded": Says(
        {"publish": puback(0x97)}, "refuses what is published", "refuses what is published: Quota exceeded"
    ),
    "PUBACK: an unknown reason": Says({"publish": puback(0x42)}, "was lost: Protocol error", ""),
    "nothing is acknowledged": Says(
        {"publish": nothing},
        "does not acknowledge what is published",
        "the broker does not acknowledge what is published",
    ),
}

# What else could be at this address; each closes the connection afterwards.
NOT_MQTT = {
    "http": HTTP + b"<html>" * 30,
    "ssh": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "smtp": b"220 mail.example ESMTP\r\n",
    "tls alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "zeros": b"\0" * 100,
    "ones": b"\xff" * 100,
    "half a head": packet(CONNACK, b"\0\0\0")[:1],
    "half a packet": packet(CONNACK, b"\0\0\0")[:-1],
    "unknown property": packet(CONNACK, b"\0\0\2\x7f\1"),
    "receive maximum 0": packet(CONNACK, b"\0\0\3\x21\0\0"),
    "a property twice": packet(CONNACK, b"\0\0\6\x21\0\1\x21\0\1"),
    "empty": packet(CONNACK),
    "its own packet": packet(CONNECT, b"\0\4MQTT\5\2\0\5\0\0\0"),
}

# Brokers that work, each in its own way. They play the equipment too.
WORKS = {
    "SUBACK with no code": {"subscribe": suback()},
    "SUBACK with one code": {"subscribe": suback(1)},
    "SUBACK with 200 codes": {"subscribe": suback(*[1] * 200)},
    "CONNACK: Receive Maximum 1": {"connect": connack(ReceiveMaximum=1)},
    "CONNACK: Receive Maximum 10": {"connect": connack(ReceiveMaximum=10)},
    "CONNACK: Maximum QoS 0": {"connect": connack(MaximumQoS=0), "subscribe": suback(0, 0)},
    "CONNACK: no retain": {"connect": connack(RetainAvailable=0)},
    "CONNACK: no wildcards": {"connect": connack(WildcardSubscriptionAvailable=0)},
    "CONNACK: packets of 512 bytes": {"connect": connack(MaximumPacketSize=512)},
    "CONNACK: what changes nothing": {
        "connect": connack(
            SessionExpiryInterval=9,
            TopicAliasMaximum=9,
            SharedSubscriptionAvailable=1,
            SubscriptionIdentifierAvailable=0,
            UserProperty=[("a", "b"), ("a", "b")],
            ReasonString="hello",
            ServerReference="x",
        )
    },
    "PUBACK: no matching subscribers": {"publish": both(puback(0x10), confirm)},
}
