"""The real equipment: how it comes, goes and returns."""

import shutil
import signal
from pathlib import Path

import pytest

from programs import Broker, wait_until
from witness import a_newcomer_sees, answers, ask, ids, plain_build, stops_at_once, waits


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_its_end_is_announced(run, broker, number):
    """It leaves with its Will; if it dies, the broker publishes that."""
    validator = run(broker)
    a_newcomer_sees("online", broker)
    assert stops_at_once(validator, number) or number == signal.SIGKILL
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


def test_a_wrong_password_is_told_once_and_tried_again(run, broker, programs, tmp_path):
    validator = run(broker, VALIDATOR_PASSWORD="not-yet")
    wait_until(lambda: "Not authorized" in validator.said(), "it is refused")
    first = waits(validator)
    wait_until(lambda: waits(validator) >= first + 5, "it has tried again and again")
    assert validator.said().count("Not authorized") == 1
    broker.stop()
    programs.append(Broker(tmp_path, port=broker.port, VALIDATOR_PASSWORD="not-yet").start())
    wait_until(lambda: "is online" in validator.said(), "it is online")


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


# What it costs


@plain_build
def test_it_needs_less_than_6_mb(meets):
    validator, _, connection = meets()
    for turn in (1, 2):
        ask(connection, ids(1000, seed=turn))
        wait_until(lambda count=1000 * turn: len(answers(connection)) == count, "all are answered")
    status = Path(f"/proc/{validator.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 6 * 1024
