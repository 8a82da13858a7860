"""The sentences about brokers, as tables: each is a function of what the broker has sent."""

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from kit.mqtt import lost, unusable

SILENT, STRANGE = (
    "x:1 accepts connections but does not answer",
    "x:1 answers with something that is not MQTT 5",
)
INSTEAD = "x:1 closes the connection instead of answering"


def limits(**values) -> Properties:
    """The properties of a CONNACK, as paho hands them over."""
    made = Properties(PacketTypes.CONNACK)
    for name, value in values.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("code", "values", "sentence"),
    [
        (0, {"MaximumPacketSize": 511}, "takes 511 bytes; a question needs up to 512"),
        (0, {"SharedSubscriptionAvailable": 0}, "does not offer shared subscriptions, which we need"),
        (0x80, {}, "refuses the connection: Unspecified error"),
        (0x87, {"ReasonString": "no\nlicence"}, r"refuses the connection: Not authorized, 'no\nlicence'"),
        (0x8A, {"ReasonString": "x" * 200}, f"refuses the connection: Banned, '{'x' * 100}'"),
        (0x95, {"SharedSubscriptionAvailable": 0}, "refuses the connection: Packet too large"),
        (0x9D, {"ServerReference": "other:1883"}, "refuses the connection: Server moved, 'other:1883'"),
    ],
)
def test_a_broker_is_refused_by_its_connack(code, values, sentence):
    assert unusable(ReasonCode(PacketTypes.CONNACK, identifier=code), limits(**values), 512) == sentence


# The properties of MQTT 5, section 3.2.2.3, in its order. The listener follows these.
FOLLOWED = {"SessionExpiryInterval": 60, "ReceiveMaximum": 1, "MaximumQoS": 0, "RetainAvailable": 0}
FOLLOWED |= {"MaximumPacketSize": 512, "AssignedClientIdentifier": "another", "TopicAliasMaximum": 9}
FOLLOWED |= {"ReasonString": "hello", "UserProperty": ("a", "b"), "WildcardSubscriptionAvailable": 0}
FOLLOWED |= {"SubscriptionIdentifierAvailable": 0, "SharedSubscriptionAvailable": 1, "ServerKeepAlive": 0}
FOLLOWED |= {"ResponseInformation": "a", "ServerReference": "b", "AuthenticationMethod": "a"}


def test_every_other_limit_in_a_connack_is_followed():
    for values in ({}, FOLLOWED):
        assert unusable(ReasonCode(PacketTypes.CONNACK, identifier=0), limits(**values), 512) == ""


def of_broker(code: int) -> ReasonCode:
    return ReasonCode(PacketTypes.DISCONNECT, identifier=code)


UNSPECIFIED, TIMEOUT, PROTOCOL = of_broker(0x80), of_broker(0x8D), of_broker(0x82)  # paho says these, too


@pytest.mark.parametrize(
    ("awaited", "code", "is_packet", "is_cut", "sentence"),
    [
        ("CONNECT", UNSPECIFIED, False, False, f"{INSTEAD} CONNECT: Unspecified error"),
        ("CONNECT", TIMEOUT, False, False, SILENT),
        ("CONNECT", TIMEOUT, False, True, STRANGE),
        ("CONNECT", PROTOCOL, False, False, STRANGE),
        ("CONNECT", UNSPECIFIED, False, True, STRANGE),
        ("CONNECT", PROTOCOL, True, False, f"{INSTEAD} CONNECT: Protocol error"),
        ("SUBSCRIBE", PROTOCOL, False, True, f"{INSTEAD} SUBSCRIBE: Protocol error"),
        ("SUBSCRIBE", of_broker(0x9E), True, 0, f"{INSTEAD} SUBSCRIBE: Shared subscription not supported"),
        ("", TIMEOUT, False, True, "the connection to x:1 was lost: Keep alive timeout"),
        ("", of_broker(0), True, False, "the connection to x:1 was lost: Normal disconnection"),
        ("", of_broker(0x8B), True, False, "the connection to x:1 was lost: Server shutting down"),
    ],
)
def test_each_way_to_lose_a_connection_has_its_sentence(awaited, code, is_packet, is_cut, sentence):
    assert lost("x:1", awaited, code, is_packet, is_cut) == sentence
