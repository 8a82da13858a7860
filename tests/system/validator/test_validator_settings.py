"""The real equipment: which values it takes, and which it refuses in a sentence."""

import socket
import subprocess

import pytest

from programs import Broker, wait_until
from witness import a_newcomer_sees


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(
            ("MQTT_PORT", value)
            for value in ("0", "65536", "-1", "+1", "1883x", " 1883", "0x75", "mqtt", "1" * 30)
        ),
        *(
            ("VALIDATOR_CONFIRM_RATE", value)
            for value in ("0.6x", "nan", "inf", "-1", "-0", "2", "1.01", "60%", "0,6")
        ),
        *(("VALIDATOR_CONFIRM_RATE", value) for value in (".", " 0.6", "0.6 ", "1e-1", "0x1p-1", "0.6.1")),
        *(("VALIDATOR_SEED", value) for value in ("-1", "1.5", "seed", "18446744073709551616", " 1", "1 ")),
        *(("VALIDATOR_DELAY_MS", value) for value in ("-1", "1s", "3600001", "0.5")),
        *(("VALIDATOR_VERBOSE", value) for value in ("2", "yes", "true", "-1")),
        *(("VALIDATOR_ID", value) for value in ("a" * 65, "a/b", "+", "#", "a b", "é", "a\n", "a.b")),
        *(("MQTT_HOST", value) for value in ("mqtt://127.0.0.1", "[::1]", "127.0.0.1:1883", "a b", "a/b")),
        ("VALIDATOR_USERNAME", "x" * 65536),
        ("VALIDATOR_PASSWORD", "x" * 65536),
    ],
)
def test_a_bad_value_stops_it_with_a_sentence(run, tmp_path, variable, value):
    validator = run(Broker(tmp_path), ends=2, **{variable: value})
    assert validator.process.wait(5) == 2
    assert f"Z validator: {variable} must " in validator.said()
    assert validator.said().count("\n") == 1


@pytest.mark.parametrize("value", ["/nowhere/ca.pem", "validator/nothing"])
def test_a_ca_file_that_does_not_come_stops_it_after_three_seconds(run, tmp_path, value):
    validator = run(Broker(tmp_path), ends=2, MQTT_CA_FILE=value)
    wait_until(lambda: "trying again: MQTT_CA_FILE must " in validator.said(), "it says so", 1)
    assert validator.process.wait(8) == 2
    assert "Z validator: MQTT_CA_FILE must " in validator.said()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VALIDATOR_CONFIRM_RATE", "0.000"),
        ("VALIDATOR_SEED", "18446744073709551615"),
        ("VALIDATOR_DELAY_MS", "3600000"),
        ("VALIDATOR_ID", "A-z_0" * 12),
        *((variable, "") for variable in ("VALIDATOR_CONFIRM_RATE", "VALIDATOR_SEED", "VALIDATOR_DELAY_MS")),
        *((variable, "") for variable in ("VALIDATOR_VERBOSE", "MQTT_CA_FILE", "MQTT_HOST")),
        ("MQTT_HOST", "localhost"),
    ],
)
def test_a_good_value_or_none_is_taken(run, broker, variable, value):
    validator = run(broker, **{variable: value})
    wait_until(lambda: "is online" in validator.said(), "it is online")


def test_an_empty_id_means_the_host_name(run, broker):
    validator = run(broker, VALIDATOR_ID="")
    name = socket.gethostname().replace(".", "-")
    wait_until(lambda: f"{name} is online" in validator.said(), "it is online")
    a_newcomer_sees("online", broker, name)


# The host has this name, for a program that is started with this library.
HOST_NAME = """
#include <stdio.h>
#include <stdlib.h>
int gethostname(char *name, size_t size) { return snprintf(name, size, "%s", getenv("HOST")) < 0; }
"""


@pytest.mark.parametrize(
    ("host", "good"), [("desk.example", True), ("desk_7", True), ("a b", False), ("é", False)]
)
def test_a_host_name_must_be_good_for_an_id(run, broker, tmp_path, host, good):
    library = tmp_path / "host.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=HOST_NAME, text=True, check=True
    )
    options = {"LD_PRELOAD": str(library), "ASAN_OPTIONS": "verify_asan_link_order=0", "HOST": host}
    validator = run(broker, ends=0 if good else 2, VALIDATOR_ID="", **options)
    if good:
        a_newcomer_sees("online", broker, host.replace(".", "-"))
    else:
        assert validator.process.wait(10) == 2
        assert "Z validator: VALIDATOR_ID must be set: the host name " in validator.said()
