"""Brokers that do not do what a broker should, and what the service and the equipment say of each."""

from scripted import (
    CONNACK,
    Connection,
    both,
    confirm,
    connack,
    disconnect,
    hang_up,
    nothing,
    packet,
    puback,
    sends,
    suback,
)

STRANGE, SILENT = "answers with something that is not MQTT 5", "the broker does not answer"
INSTEAD, CLOSED = "closes the connection instead of answering", "the broker closed the connection"
SUBACK, PUBACK = "refuses the subscription: Not authorized", "refuses what is published"
SHARED = "does not offer shared subscriptions, which we need"
UNAUTHORIZED = "refuses the connection: Not authorized"
HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n"

# What a broker does, and words that the service and the equipment say then; "" if we do not ask that one.
SAYS = {
    "accepts and never speaks": ({"connect": nothing}, "accepts connections but does not answer", SILENT),
    "closes at once": ({"accept": Connection.close}, f"{INSTEAD} CONNECT", CLOSED),
    "HTTP": ({"connect": both(sends(HTTP), hang_up)}, STRANGE, STRANGE),
    "SSH, and stays": ({"connect": sends(b"SSH-2.0-OpenSSH_9.2p1\r\n")}, STRANGE, STRANGE),
    "CONNACK of MQTT 3.1.1": ({"connect": sends(packet(CONNACK, b"\0\5"))}, STRANGE, STRANGE),
    "CONNACK: not authorized": (
        {"connect": connack(0x87, ReasonString="why")},
        f"{UNAUTHORIZED}, 'why'",
        UNAUTHORIZED,
    ),
    "CONNACK: no shared subscriptions": (
        {"connect": connack(SharedSubscriptionAvailable=0)},
        SHARED,
        SHARED,
    ),
    "connection closed on SUBSCRIBE": ({"subscribe": hang_up}, f"{INSTEAD} SUBSCRIBE", CLOSED),
    "SUBSCRIBE is never answered": ({"subscribe": nothing}, "does not answer SUBSCRIBE", SILENT),
    "DISCONNECT instead of SUBACK": (
        {"subscribe": disconnect(0x8B)},
        "SUBSCRIBE: Server shutting down",
        f"{CLOSED}: Server shutting down",
    ),
    "SUBACK refuses one of two": ({"subscribe": suback(1, 0x87)}, SUBACK, SUBACK),
    "SUBACK: an unknown code": ({"subscribe": suback(7, 1)}, "SUBSCRIBE: Protocol error", ""),
    "PUBACK: quota exceeded": ({"publish": puback(0x97)}, PUBACK, f"{PUBACK}: Quota exceeded"),
    "PINGREQ is never answered": ({"ping": nothing}, "was lost: Keep alive timeout", SILENT),
    "nothing is acknowledged": (
        {"publish": nothing},
        "does not acknowledge what is published",
        "the broker does not acknowledge what is published",
    ),
}

# Brokers that work, each in its own way. They play the equipment too.
WORKS = {
    "SUBACK with no code": {"subscribe": suback()},
    "SUBACK with 200 codes": {"subscribe": suback(*[1] * 200)},
    "CONNACK: Maximum QoS 0": {"connect": connack(MaximumQoS=0), "subscribe": suback(0, 0)},
    "CONNACK: no retain": {"connect": connack(RetainAvailable=0)},
    "CONNACK: no wildcards": {"connect": connack(WildcardSubscriptionAvailable=0)},
    "CONNACK: what changes nothing": {
        "connect": connack(SessionExpiryInterval=9, UserProperty=[("a", "b"), ("a", "b")], ReasonString="x")
    },
    "PUBACK: no matching subscribers": {"publish": both(puback(0x10), confirm)},
}
