"""Anything a broker may say: each way to be disconnected has its own sentence, which ends with its cause."""

import gc
import socket
import subprocess
import time
import warnings

import pytest

from programs import free_port, wait_until
from scripted import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    SUBSCRIBE,
    both,
    connack,
    hang_up,
    in_turn,
    nothing,
    packet,
    sends,
    suback,
    take_and_confirm,
)

SILENT, STRANGE = "accepts connections but does not answer", "answers with something that is not MQTT 5"
INSTEAD = "closes the connection instead of answering"


def says_and_is_mended(broker, pair, mend, *words: str, seconds: float = 6) -> None:
    """It says so, asks nothing, and settles everything with the next broker."""
    pair.says(*words, seconds=seconds)
    key = pair.create()
    assert not pair.listener.subscribed
    mend(broker, pair)
    pair.settled(key)


# CONNACK


@pytest.mark.parametrize("closes", [True, False])
def test_a_refused_connection_is_said_with_its_reason(start, scripted, closes):
    broker = scripted(connect=both(connack(0x87, ReasonString="no licence"), *[hang_up] * closes))
    start(broker.port).says("refuses the connection: Not authorized, 'no licence'", seconds=6)


@pytest.mark.parametrize("code", [1, 5])
def test_a_broker_of_mqtt_3_is_told_apart(start, scripted, mend, code):
    """Its CONNACK has two bytes; 1 says that it does not know the version."""
    broker = scripted(connect=both(sends(packet(CONNACK, bytes([0, code]))), hang_up))
    pair = start(broker.port)
    words = ("refuses the connection", "Unsupported protocol version") if code == 1 else (STRANGE,)
    says_and_is_mended(broker, pair, mend, *words)


NOT_MQTT = {
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n" + b"<html>" * 30,
    "short http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
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
    "unknown reason": packet(CONNACK, b"\0\x05\0"),
    "empty": packet(CONNACK),
    "its own packet": packet(CONNECT, b"\0\4MQTT\5\2\0\5\0\0\0"),
    "subscribe": packet(SUBSCRIBE, b"\0\1\0\0\1x\1", 2),
}


@pytest.mark.parametrize("closes", [True, False], ids=["closes", "stays"])
def test_what_is_not_mqtt_5_is_told_apart(start, scripted, closes):
    answers = [both(sends(answer), *[hang_up] * closes) for answer in NOT_MQTT.values()]
    broker = scripted(connect=in_turn(*answers, nothing))
    pair = start(broker.port)
    pair.listener._client.reconnect_delay_set(0.01, 0.02)
    broker.connection(len(answers) + 1, 60)
    heard = list(zip(NOT_MQTT, pair.unheard, strict=True))
    assert [(name, sentence) for name, sentence in heard if STRANGE not in sentence] == []


def test_what_is_not_mqtt_5_is_forgotten_with_a_good_broker(start, scripted, mend):
    broker = scripted(accept=lambda connection: connection.send(NOT_MQTT["short http"]), connect=hang_up)
    says_and_is_mended(broker, start(broker.port), mend, STRANGE)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_connection_that_is_closed_at_once(start, scripted, mend, how):
    broker = scripted(accept=lambda connection: getattr(connection, how)())
    says_and_is_mended(broker, start(broker.port), mend, f"{INSTEAD} CONNECT")


def test_connect_is_never_answered(start, scripted, mend):
    broker = scripted(connect=nothing)
    says_and_is_mended(broker, start(broker.port), mend, SILENT, seconds=8)


def test_a_sentence_of_an_earlier_connection_does_not_stay(start, scripted, mend):
    """First a refusal, then silence after SUBSCRIBE: what it says within 6 s is about the second."""
    broker = scripted(connect=in_turn(connack(0x87), connack()), subscribe=nothing)
    pair = start(broker.port)
    pair.says("refuses the connection", "Not authorized")
    wait_until(lambda: "Not authorized" not in pair.listener.problem, "the refusal is over", 6)
    pair.says("SUBSCRIBE", seconds=1)
    mend(broker, pair)


# SUBACK


def test_a_suback_may_have_any_number_of_codes(start, scripted):
    answers = [[], [0], [1], [2], [0, 0], [1, 0], [1, 1, 1], [1] * 200]
    broker = scripted(subscribe=in_turn(*(suback(*codes) for codes in answers)), publish=take_and_confirm)
    pair = start(broker.port)
    for number in range(len(answers)):
        pair.ready()
        pair.settled(pair.create())
        broker.connection(number + 1).close()
        pair.says("was lost")
    assert len(broker.connections) == len(answers)


def test_a_refused_subscription_is_said(start, scripted, mend):
    answers = [[0x80], [1, 0x87], [0x87, 1], [0x9E, 0x9E], [1, 1, 0x8F], [0xA2, 1]]
    broker = scripted(subscribe=in_turn(*(suback(*codes) for codes in answers)))
    pair = start(broker.port)
    broker.connection(len(answers) + 1, 30)
    assert all("refuses the subscription" in sentence for sentence in pair.unheard)
    assert len(pair.unheard) >= len(answers)
    says_and_is_mended(broker, pair, mend, "refuses the subscription")


def test_an_unknown_code_in_suback_is_not_mqtt(start, scripted, mend):
    broker = scripted(subscribe=suback(7, 1))
    says_and_is_mended(broker, start(broker.port), mend, "SUBSCRIBE", "Protocol error")


def test_subscribe_is_never_answered(start, scripted, mend):
    broker = scripted(subscribe=nothing)
    pair = start(broker.port)
    pair.says("SUBSCRIBE", seconds=6)
    connected = time.monotonic()
    pair.says("does not answer SUBSCRIBE", seconds=12)
    assert time.monotonic() - connected > 8
    broker.connection(2, 3)
    says_and_is_mended(broker, pair, mend, "SUBSCRIBE")


def test_a_connection_that_is_closed_on_subscribe(start, scripted, mend):
    broker = scripted(subscribe=hang_up)
    says_and_is_mended(broker, start(broker.port), mend, f"{INSTEAD} SUBSCRIBE")


def test_a_suback_that_comes_again_is_not_news(start, scripted):
    """Otherwise a broker that repeats itself would keep questions alive."""
    broker = scripted()
    pair = start(broker.port, validation_timeout=2, validation_retry=1)
    pair.ready()
    key = pair.create()
    connection = broker.connection()

    def expired() -> bool:
        connection.suback(connection.received(SUBSCRIBE)[0].id, [1, 1])
        return pair.status(key) == "EXPIRED"

    wait_until(expired, "it expires", 8)


# DISCONNECT


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Normal disconnection"),
        (b"\x8b", "Server shutting down"),
        (b"\x9d\x0a\x1c\0\7another", "Server moved"),
    ],
)
@pytest.mark.parametrize("stays", [True, False])
def test_a_disconnect_is_said_with_its_reason(start, scripted, body, reason, stays):
    broker = scripted()
    pair = start(broker.port)
    pair.ready()
    connection = broker.connection()
    connection.send(packet(DISCONNECT, body))
    if not stays:
        connection.close()
    pair.says("was lost", reason, seconds=6)
    pair.ready()
    assert len(broker.connections) == 2


def test_a_disconnect_instead_of_suback_is_said_with_its_reason(start, scripted, mend):
    broker = scripted(subscribe=lambda connection, packet: connection.disconnect(0x9E))
    words = f"{INSTEAD} SUBSCRIBE", "Shared subscription not supported"
    says_and_is_mended(broker, start(broker.port), mend, *words)


def test_a_disconnect_instead_of_connack_is_said_with_its_reason(start, scripted):
    broker = scripted(connect=lambda connection, packet: connection.disconnect(0x8D))
    start(broker.port).says(f"{INSTEAD} CONNECT", seconds=6)


def test_a_lost_connection_is_said(start, scripted, mend):
    broker = scripted(connect=in_turn(connack(), nothing))
    pair = start(broker.port)
    pair.ready()
    broker.connection().reset()
    says_and_is_mended(broker, pair, mend, "was lost")


# How often it connects


def test_a_broker_that_closes_after_connack_meets_no_busy_loop(start, scripted, mend):
    broker = scripted(connect=both(connack(), hang_up))
    pair = start(broker.port)
    broker.connection(1)
    began = time.monotonic()
    broker.connection(5)
    assert time.monotonic() - began > 3.5
    mend(broker, pair)


def test_the_first_attempts_follow_each_other_quickly(start, scripted):
    port = free_port()
    pair = start(port)
    pair.says("cannot be reached")
    began = time.monotonic()
    broker = scripted(port=port)
    pair.ready()
    assert time.monotonic() - began < 1
    broker.connection().close()
    pair.says("was lost")
    lost = time.monotonic()
    pair.ready()
    assert 0.8 < time.monotonic() - lost < 3


def test_later_attempts_are_two_seconds_apart_at_most(start, scripted):
    broker = scripted(connect=hang_up)
    start(broker.port)
    broker.connection(7)
    began = time.monotonic()
    broker.connection(9)
    assert 2 < time.monotonic() - began < 6


def test_a_host_without_an_address_is_said(start):
    pair = start(1, mqtt_host="no-such-host.invalid")
    pair.says("cannot be reached")
    assert pair.listener.alive


def test_a_frozen_broker_is_noticed_in_two_keepalives(start, scripted, mend):
    """DESIGN wants 6 s; with a keepalive of 5 s, a PINGREQ is sent after 5 s and given up after 10."""
    broker = scripted()
    pair = start(broker.port)
    pair.ready()
    broker.connection().may_read.clear()
    pair.says("was lost", "Keep alive timeout", seconds=12)
    mend(broker, pair)


def test_tls_waits_for_its_file_and_meets_something_that_never_speaks(start, tmp_path):
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null"]
    authority = str(tmp_path / "ca.pem")
    with socket.create_server(("127.0.0.1", 0)) as silent, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # paho leaves its socket to the garbage collector
        pair = start(silent.getsockname()[1], mqtt_ca_file=authority)
        pair.says(f"MQTT_CA_FILE={authority} cannot be read: No such file or directory", seconds=6)
        subprocess.run([*command, "-subj", "/CN=ca", "-out", authority], check=True, capture_output=True)
        pair.says("cannot be reached", "timed out", seconds=8)
        assert pair.listener.alive
        pair.stop()
        gc.collect()
