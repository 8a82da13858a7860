"""The real equipment over TLS."""

import shutil

import pytest

from programs import Broker, free_port, wait_until
from scripted import Connection
from witness import lines, plain_build, stops_at_once, ticks


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_it_speaks_tls(run, tls_broker, certificates, host):
    broker = tls_broker("here")
    validator = run(broker, online=True, MQTT_HOST=host, MQTT_CA_FILE=str(certificates / "ours.pem"))
    assert stops_at_once(validator)


@pytest.mark.parametrize(("broker", "ca"), [("here", "theirs"), ("elsewhere", "ours")])
def test_it_trusts_no_stranger(run, tls_broker, certificates, broker, ca):
    validator = run(tls_broker(broker), MQTT_CA_FILE=str(certificates / f"{ca}.pem"))
    wait_until(lambda: "verif" in validator.said(), "it has refused the certificate")
    assert "is online" not in validator.said()
    assert stops_at_once(validator)


def test_tls_may_come_later(run, tls_broker, certificates, tmp_path):
    port = free_port()
    validator = run(Broker(tmp_path, port=port), MQTT_CA_FILE=str(certificates / "ours.pem"))
    wait_until(lambda: "trying again" in validator.said(), "it has tried")
    tls_broker("here", port)
    wait_until(lambda: "is online" in validator.said(), "it is online")


def test_a_ca_file_that_vanishes_does_not_end_it(run, tls_broker, certificates, tmp_path):
    ca = tmp_path / "ca.pem"
    shutil.copy(certificates / "ours.pem", ca)
    broker = tls_broker("here")
    validator = run(broker, online=True, MQTT_CA_FILE=str(ca))
    ca.unlink()
    broker.stop()
    wait_until(lambda: "MQTT_CA_FILE must name" in validator.said(), "it misses the file")
    shutil.copy(certificates / "ours.pem", ca)
    broker.start()
    wait_until(lambda: validator.said().count("is online") == 2, "it is online again")


def test_it_may_start_while_the_ca_file_is_away(run, tls_broker, certificates, tmp_path):
    ca = tmp_path / "ca.pem"
    validator = run(tls_broker("here"), MQTT_CA_FILE=str(ca))
    wait_until(lambda: "trying again: MQTT_CA_FILE must name" in validator.said(), "it misses the file")
    shutil.copy(certificates / "ours.pem", ca)
    wait_until(lambda: "is online" in validator.said(), "it is online")


@plain_build
def test_a_reset_during_the_handshake_is_noticed(run, scripted, certificates):
    broker = scripted(accept=Connection.reset)
    validator = run(broker, MQTT_CA_FILE=str(certificates / "ours.pem"))
    broker.connection(3, 5)
    assert "the broker " in lines(validator)[0]
    assert ticks(validator) < 30
