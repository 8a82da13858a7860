"""The real equipment: which values it takes, and which it refuses in a sentence."""

import socket

import pytest

from programs import Broker, wait_until
from witness import a_newcomer_sees

BAD = {
    "MQTT_PORT": ("0", "65536", "+1", "1883x", " 1883", "1" * 30),
    "VALIDATOR_CONFIRM_RATE": ("0.6x", "nan", "-0", "1.01", "0,6", ".", "0x1p-1"),
    "VALIDATOR_SEED": ("-1", "1.5", "18446744073709551616", "1 "),
    "VALIDATOR_DELAY_MS": ("-1", "1s", "3600001"),
    "VALIDATOR_VERBOSE": ("2", "yes"),
    "VALIDATOR_ID": ("a" * 65, "a/b", "+", "a b", "é", "a.b"),
    "MQTT_HOST": ("mqtt://127.0.0.1", "[::1]", "127.0.0.1:1883"),
    "VALIDATOR_USERNAME": ("x" * 65536,),
    "VALIDATOR_PASSWORD": ("x" * 65536,),
}


@pytest.mark.parametrize("variable", BAD)
def test_a_bad_value_stops_it_with_a_sentence(run, tmp_path, variable):
    for number, value in enumerate(BAD[variable]):
        validator = run(Broker(tmp_path), f"bad-{number}", ends=2, **{variable: value})
        assert validator.process.wait(30) == 2, value
        assert f"Z validator: {variable} must " in validator.said()
        assert validator.said().count("\n") == 1


def test_a_ca_file_that_does_not_come_stops_it(run, tmp_path):
    validator = run(Broker(tmp_path), ends=2, MQTT_CA_FILE="/nowhere/ca.pem")
    wait_until(lambda: "trying again: MQTT_CA_FILE must " in validator.said(), "it says so")
    assert validator.process.wait(30) == 2
    assert "Z validator: MQTT_CA_FILE must " in validator.said()


def test_good_values_are_taken_and_empty_ones_mean_the_defaults_and_the_host_name(run, broker):
    names = "VALIDATOR_CONFIRM_RATE", "VALIDATOR_SEED", "VALIDATOR_DELAY_MS", "MQTT_HOST", "MQTT_CA_FILE"
    good = dict(zip(names, ("0.000", "18446744073709551615", "3600000", "localhost", ""), strict=True))
    empty = dict.fromkeys([*names, "VALIDATOR_VERBOSE"], "")
    for values in (good | {"VALIDATOR_ID": "A-z_0" * 12}, empty):
        validator = run(broker, name="good" if values["MQTT_HOST"] else "empty", **values)
        wait_until(lambda one=validator: "is online" in one.said(), "it is online")
    run(broker, name="host", VALIDATOR_ID="")
    a_newcomer_sees("online", broker, socket.gethostname().replace(".", "-"))
