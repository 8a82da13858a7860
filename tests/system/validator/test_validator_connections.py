"""The real equipment: how it comes, goes and returns."""

import shutil
import signal
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from programs import Broker, wait_until
from scripted import Connection
from witness import (
    a_newcomer_sees,
    answers,
    ask,
    connections,
    ids,
    lines,
    plain_build,
    stops_at_once,
    ticks,
    waits,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_its_end_is_announced(run, broker, number):
    """It leaves with its Will; if it dies, the broker publishes that."""
    validator = run(broker)
    a_newcomer_sees("online", broker)
    assert stops_at_once(validator, number) or number == signal.SIGKILL
    a_newcomer_sees("offline", broker)


def test_it_stops_while_it_waits_to_reconnect(run, tmp_path):
    validator = run(Broker(tmp_path))
    wait_until(lambda: "Connection refused" in validator.said(), "it has tried")
    assert stops_at_once(validator)


@contextmanager
def full_backlog():
    """A port at which the kernel answers no new client."""
    with ExitStack() as ends:
        silent = ends.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        for _ in range(4):
            client = ends.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(silent.getsockname())
        yield silent.getsockname()[1]


@plain_build
def test_a_connection_that_cannot_be_made_is_given_up_and_holds_up_no_stop(run, tmp_path):
    with full_backlog() as port:
        validator = run(Broker(tmp_path, port=port))
        wait_until(lambda: "the broker cannot be reached: no answer" in validator.said(), "it gives up")
        wait_until(lambda: connections(validator, "02"), "it is connecting again")
        assert stops_at_once(validator)


def test_it_stops_though_the_broker_is_frozen(run, broker):
    validator = run(broker, is_online=True)
    broker.process.send_signal(signal.SIGSTOP)
    assert stops_at_once(validator)
    broker.process.send_signal(signal.SIGCONT)
    a_newcomer_sees("offline", broker)


def test_it_may_start_before_the_broker_and_outlives_it(run, tmp_path, programs):
    broker = Broker(tmp_path)
    validator = run(broker)
    wait_until(lambda: "Connection refused" in validator.said(), "it has tried")
    programs.append(broker.start())
    a_newcomer_sees("online", broker)
    broker.kill()
    broker.start()
    a_newcomer_sees("online", broker)


def test_two_with_one_id_take_turns(run, broker):
    two = [run(broker, VALIDATOR_ID="twin", name=name) for name in ("one", "other")]
    for validator in two:
        wait_until(lambda validator=validator: lines(validator), "it says that it was disconnected")
    wait_until(lambda: sum(validator.said().count("is online") for validator in two) >= 4, "they take turns")


def test_a_wrong_password_is_told_once_and_tried_again(run, broker, programs, tmp_path):
    validator = run(broker, VALIDATOR_PASSWORD="not-yet")
    wait_until(lambda: "Not authorized" in validator.said(), "it is refused")
    first = waits(validator)
    wait_until(lambda: waits(validator) >= first + 5, "it has tried again and again")
    assert validator.said().count("Not authorized") == 1
    broker.stop()
    programs.append(Broker(tmp_path, port=broker.port, VALIDATOR_PASSWORD="not-yet").start())
    wait_until(lambda: "is online" in validator.said(), "it is online")


def test_a_host_without_an_address_is_named(run, tmp_path):
    validator = run(Broker(tmp_path), MQTT_HOST="no-such-host.invalid")
    wait_until(lambda: lines(validator), "it has tried")
    assert lines(validator)[0].startswith("the broker cannot be reached: ")


# TLS. tests/system/test_security_tls.py has the certificates that are refused.


def test_a_ca_file_may_be_away_at_the_start_and_vanish_later(run, tls_broker, certificates, tmp_path):
    ca = tmp_path / "ca.pem"
    broker = tls_broker("here").start()
    validator = run(broker, MQTT_CA_FILE=str(ca))
    for count in (1, 2):
        missed = lambda count=count: validator.said().count("MQTT_CA_FILE must name") == count  # noqa: E731
        wait_until(missed, "it misses the file")
        shutil.copy(certificates / "ours.pem", ca)
        broker.running or broker.start()
        wait_until(lambda count=count: validator.said().count("is online") == count, "it is online")
        ca.unlink()
        broker.stop()


@plain_build
def test_a_reset_during_the_handshake_is_noticed(run, scripted, certificates):
    broker = scripted(accept=Connection.reset)
    validator = run(broker, MQTT_CA_FILE=str(certificates / "ours.pem"))
    broker.connection(3)
    wait_until(lambda: lines(validator), "it says so")
    assert "the broker " in lines(validator)[0]
    assert ticks(validator) < 30


# What it costs


@plain_build
@pytest.mark.parametrize("there_is", ["a broker", "no broker with TLS"])
def test_idle_it_does_nothing(run, broker, certificates, there_is):
    if there_is != "a broker":
        broker.stop()
    tls = {"MQTT_CA_FILE": f"{certificates}/ours.pem"} if "TLS" in there_is else {}
    validator = run(broker, is_online=there_is == "a broker", **tls)
    first_wait, first_tick = waits(validator), ticks(validator)
    wait_until(lambda: waits(validator) >= first_wait + 4, "it has slept four times")
    assert ticks(validator) - first_tick <= 3


@plain_build
def test_it_needs_less_than_6_mb(meets):
    validator, _, connection = meets()
    for turn in (1, 2):
        ask(connection, ids(1000, seed=turn))
        wait_until(lambda count=1000 * turn: len(answers(connection)) == count, "all are answered")
    status = Path(f"/proc/{validator.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 6 * 1024
