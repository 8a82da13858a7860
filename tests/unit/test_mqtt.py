"""The sentence about a broker that refuses, as a table: a function of its CONNACK."""

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from kit.mqtt import unusable


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
        (0x87, {"ReasonString": "no\nlicence"}, r"refuses the connection: Not authorized, 'no\nlicence'"),
        (0x8A, {"ReasonString": "x" * 200}, f"refuses the connection: Banned, '{'x' * 100}'"),
        (0x95, {"SharedSubscriptionAvailable": 0}, "refuses the connection: Packet too large"),
        (0x9D, {"ServerReference": "other:1883"}, "refuses the connection: Server moved, 'other:1883'"),
    ],
)
def test_a_broker_is_refused_by_its_connack(code, values, sentence):
    assert unusable(ReasonCode(PacketTypes.CONNACK, identifier=code), limits(**values), 512) == sentence
