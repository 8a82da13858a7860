"""The real equipment: how it comes, goes and returns."""

import json
import signal
import socket
from pathlib import Path

import pytest

from programs import Broker, wait_until
from witness import Witness, a_newcomer_sees, connections, ids, plain_build, stops_at_once, ticks, waits


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_takes_its_leave(run, broker, witness, number):
    validator = run(broker, online=True)
    witness.sees("online")
    a_newcomer_sees("online", broker)
    assert stops_at_once(validator, number)
    witness.sees("offline")
    a_newcomer_sees("offline", broker)


def test_it_stops_while_it_waits_to_reconnect(run, tmp_path):
    validator = run(Broker(tmp_path))
    wait_until(lambda: "Connection refused" in validator.said(), "it has tried")
    assert stops_at_once(validator)


def test_it_stops_while_a_connection_is_being_made(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        address = silent.getsockname()
        clients = [socket.socket() for _ in range(4)]
        for client in clients:  # until the backlog is full: then the kernel answers no new client
            client.setblocking(False)
            client.connect_ex(address)
        validator = run(Broker(tmp_path, port=address[1]))
        wait_until(lambda: connections(validator, "02"), "it is connecting")
        assert stops_at_once(validator)
        for client in clients:
            client.close()


@plain_build
def test_a_connection_that_cannot_be_made_is_given_up_after_ten_seconds(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        address = silent.getsockname()
        clients = [socket.socket() for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(address)
        validator = run(Broker(tmp_path, port=address[1]))
        wait_until(lambda: "the broker cannot be reached: no answer" in validator.said(), "it gives up", 14)
        for client in clients:
            client.close()


def test_it_stops_when_the_broker_accepts_but_never_speaks(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        validator = run(Broker(tmp_path, port=silent.getsockname()[1]))
        peer, _ = silent.accept()
        assert stops_at_once(validator)
        peer.close()


def test_it_stops_though_the_broker_is_frozen(run, broker, witness):
    validator = run(broker, online=True)
    witness.sees("online")
    broker.process.send_signal(signal.SIGSTOP)
    assert stops_at_once(validator)
    broker.process.send_signal(signal.SIGCONT)
    witness.sees("offline")


def test_it_stops_under_load(run, broker, witness):
    validator = run(broker, online=True)
    for transaction in ids(20000):
        witness.ask(transaction)
    witness.answer(100)
    assert stops_at_once(validator)
    witness.sees("offline")


def test_its_death_is_announced_by_the_broker(run, broker, witness):
    validator = run(broker, online=True)
    witness.sees("online")
    validator.kill()
    witness.sees("offline")
    a_newcomer_sees("offline", broker)


def test_it_may_start_before_the_broker(run, tmp_path, programs):
    broker = Broker(tmp_path)
    validator = run(broker)
    wait_until(lambda: "Connection refused" in validator.said(), "it has tried")
    programs.append(broker.start())
    with Witness(broker) as witness:
        witness.sees("online")
        assert len(witness.verdicts(ids(10))) == 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_outlives_the_broker(run, broker, witness, number):
    run(broker, online=True)
    witness.sees("online")
    witness.messages.clear()
    broker.stop(number)
    broker.start()
    witness.sees("online")
    assert len(witness.verdicts(ids(10))) == 10


@plain_build
def test_a_broker_that_freezes_is_left_and_found_again(run, broker, witness):
    validator = run(broker, online=True)
    broker.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "the broker does not answer" in validator.said(), "it has noticed", 30)
    broker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: validator.said().count("is online") == 2, "it is online again")
    wait_until(lambda: len(witness.verdicts(ids(10))) == 10, "it answers")


def test_answers_that_wait_outlive_the_broker(run, broker, witness):
    validator = run(broker, online=True, VALIDATOR_DELAY_MS="4000", VALIDATOR_VERBOSE="1")
    for transaction in ids(30):
        witness.ask(transaction)
    wait_until(lambda: len(validator.output.read_text().splitlines()) == 30, "30 questions are received")
    witness.granted = False
    broker.kill()
    broker.start()
    wait_until(lambda: witness.granted, "the witness listens again")
    witness.answer(30)
    assert [json.loads(answer.payload)["transaction_id"] for answer in witness.answers] == ids(30)


def test_a_refused_subscription_is_told_and_tried_again(run, another_broker, tmp_path):
    # An access list never refuses a subscription; this plugin, which comes with Mosquitto, does.
    plugin = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"))
    rules = {
        "publishClientSend": True,
        "publishClientReceive": True,
        "subscribe": False,
        "unsubscribe": True,
    }
    (tmp_path / "rules.json").write_text(json.dumps({"defaultACLAccess": rules}))
    broker = another_broker(f"plugin {plugin}", f"plugin_opt_config_file {tmp_path}/rules.json")
    validator = run(broker, VALIDATOR_USERNAME="")
    wait_until(lambda: "refuses the subscription: Not authorized" in validator.said(), "it is refused")
    broker.stop()
    (tmp_path / "rules.json").write_text(json.dumps({"defaultACLAccess": rules | {"subscribe": True}}))
    broker.start()
    wait_until(lambda: "is online" in validator.said(), "it is online")


def test_a_wrong_password_is_told_once_and_tried_again(run, broker, programs, tmp_path):
    validator = run(broker, VALIDATOR_PASSWORD="not-yet")
    wait_until(lambda: "Not authorized" in validator.said(), "it is refused")
    first = waits(validator)
    wait_until(lambda: waits(validator) >= first + 12, "it has tried again and again")
    assert validator.said().count("Not authorized") == 1
    broker.stop()
    programs.append(Broker(tmp_path, port=broker.port, VALIDATOR_PASSWORD="not-yet").start())
    wait_until(lambda: "is online" in validator.said(), "it is online")


@plain_build
@pytest.mark.parametrize("there_is", ["a broker", "no broker", "no broker with TLS"])
def test_idle_it_does_nothing(run, broker, certificates, there_is):
    if there_is != "a broker":
        broker.stop()
    tls = {"MQTT_CA_FILE": f"{certificates}/ours.pem"} if "TLS" in there_is else {}
    validator = run(broker, online=there_is == "a broker", **tls)
    first_wait, first_tick = waits(validator), ticks(validator)
    wait_until(lambda: waits(validator) >= first_wait + 8, "it has slept eight times", 30)
    assert ticks(validator) - first_tick <= 5
