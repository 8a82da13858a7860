"""The broker's two accounts: what each may read and write, and who sees the passwords."""

import re
import socket
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from paho.mqtt.client import Client, MQTTv5, MQTTv31, MQTTv311

from peer import Peer, dial
from programs import ACCOUNTS, ROOT, SECRETS, Broker, Equipment, Service, wait_until

QUESTIONS, VERDICTS = "EQUIPMENT/VALIDATION", "EQUIPMENT/VALIDATION/RESPONSE"
STATUS = "EQUIPMENT/STATUS/validator"
BOTH = ("account", "other"), [("MQTT", "VALIDATOR"), ("VALIDATOR", "MQTT")]
READS = {"MQTT": {VERDICTS, STATUS}, "VALIDATOR": {QUESTIONS}}
WRITES = {"MQTT": {QUESTIONS}, "VALIDATOR": {VERDICTS, STATUS}}
TOPICS = f"""
    {QUESTIONS} {VERDICTS} {STATUS} EQUIPMENT/STATUS {STATUS}/x {QUESTIONS}/ {VERDICTS}/x EQUIPMENT/x
    /{QUESTIONS} {QUESTIONS.lower()} other/topic $other/topic $SYS/broker/version $CONTROL/x
""".split()
FILTERS = f"""
    # $SYS/# $other/# $CONTROL/# /# EQUIPMENT/# +/+ +/+/+ {QUESTIONS} {VERDICTS} {STATUS}
    $share/validators/{QUESTIONS} $share/validators/{VERDICTS} $share/energy2go/{QUESTIONS}
    $share/mine/{QUESTIONS} $share/mine/{VERDICTS} $share/mine/# $share/mine/$SYS/#
""".split()
WRONG = [
    {"VALIDATOR_PASSWORD": "wrong"},
    {"VALIDATOR_PASSWORD": ""},
    {"VALIDATOR_PASSWORD": ACCOUNTS["MQTT_PASSWORD"]},
    {"VALIDATOR_PASSWORD": ACCOUNTS["VALIDATOR_PASSWORD"].upper()},
    {"VALIDATOR_USERNAME": "nobody"},
    {"VALIDATOR_USERNAME": ""},
    {"account": ""},
]


@pytest.mark.parametrize("protocol", [MQTTv31, MQTTv311, MQTTv5])
def test_the_broker_refuses_a_wrong_password(broker, protocol):
    said = {}
    strangers = [dial(broker, protocol=protocol, **instead) for instead in WRONG]
    for number, client in enumerate(strangers):
        client.on_connect = lambda *arguments, number=number: said.update({number: str(arguments[3])})
        client.loop_start()
    wait_until(lambda: len(said) == len(WRONG), "the broker has answered all")
    for end in (Client.disconnect, Client.loop_stop):
        for client in strangers:
            end(client)
    assert {*said.values()} <= {"Not authorized", "Bad user name or password"}


@pytest.fixture
def lax(run):
    """A function that starts a broker that lets one account do anything."""
    everything = "\nuser {}_USERNAME\ntopic readwrite #\ntopic readwrite $other/#\n"
    return lambda account: run(Broker, acl=everything.format(account))


@pytest.mark.parametrize(*BOTH)
def test_an_account_reads_nothing_but_its_topics(lax, account, other):
    broker = lax(other)  # it never refuses a subscription, so let the other account publish anywhere
    early, late = TOPICS[: len(TOPICS) // 2], TOPICS[len(TOPICS) // 2 :]
    with Peer(broker, "#", account=other) as witness:
        for topic in early:
            witness.publish(topic, "retained", retain=True)
        with Peer(broker, *FILTERS, account=account) as reader:
            for topic in late + early:
                witness.publish(topic)
            for topic in READS[account]:
                assert witness.publish(topic, "last") == "Success"
            assert reader.before_the_last() == READS[account]
            assert witness.before_the_last() > READS[account] | {"other/topic", "EQUIPMENT/x"}


@pytest.mark.parametrize(*BOTH)
def test_an_account_writes_nothing_but_its_topics(lax, account, other):
    broker = lax(other)
    with Peer(broker, "#", "$other/#", account=other) as reader, Peer(broker, account=account) as writer:
        for topic in TOPICS:
            for retain in (False, True):
                reason = writer.publish(topic, retain=retain)
                assert (reason == "Not authorized") == (topic not in WRITES[account]), (topic, reason)
        for topic in WRITES[account]:
            assert writer.publish(topic, "last") != "Not authorized"
        assert reader.before_the_last() == WRITES[account]


def test_a_last_will_goes_no_further_than_its_account(lax):
    broker = lax("MQTT")
    with Peer(broker, "#", account="MQTT") as reader, Peer(broker) as writer:
        with ExitStack() as ends:
            topics = QUESTIONS, "other/topic", STATUS
            dying = [ends.enter_context(Peer(broker, will=topic)) for topic in topics]
            for peer in dying:
                peer.client.socket().shutdown(socket.SHUT_RDWR)
            for peer in dying:
                wait_until(lambda one=peer: one.lost, "its connection is lost")
        wait_until(lambda: any(message.topic == STATUS for message in reader.messages), "the will that may")
        writer.publish(VERDICTS, "last")
        assert reader.before_the_last() == {STATUS}


def test_what_is_too_large_is_refused_and_the_service_survives(run, broker):
    limit = re.search(r"^max_packet_size (\d+)$", (ROOT / "mosquitto.conf").read_text(), re.MULTILINE)[1]
    run(Equipment, broker)
    service = run(Service, broker)
    wait_until(service.online, "all are online")
    with Peer(broker, VERDICTS, STATUS, account="MQTT") as reader, Peer(broker) as writer:
        for topic in (VERDICTS, STATUS):
            with Peer(broker) as large:
                large.client.publish(topic, b"x" * int(limit), qos=1)
                wait_until(lambda one=large: "Packet too large" in one.lost, "the broker says so")
        writer.publish(VERDICTS, "last")
        assert reader.before_the_last() == {STATUS}
        assert {message.payload for message in reader.messages} == {b"online", b"last"}
    assert service.settles()
    assert "was lost" not in service.said()


NONSENSE = {
    "a CONNECT of 256 MB": b"\x10\xff\xff\xff\x7f\0\4MQTT\5",
    "a length that never ends": b"\x10\x80\x80\x80\x80\x80\1",
    "a PUBLISH before any CONNECT": b"\x30\x0a\0\4abcdxxxx",
    "HTTP": b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n",
    "TLS": b"\x16\3\1\2\0\1\0\1\xfc\3\3" + bytes(600),
}


def test_a_stranger_who_talks_nonsense_to_the_broker_is_cut_off(broker):
    with Peer(broker) as other:
        for nonsense in NONSENSE.values():
            stranger = socket.create_connection(("127.0.0.1", broker.port), timeout=60)
            with stranger, suppress(ConnectionError):
                stranger.sendall(nonsense)
                while stranger.recv(4096):
                    pass
        other.publish(VERDICTS)
        assert other.lost == []


# Where the passwords are


def test_only_their_owner_reads_the_files_that_the_broker_is_given(tmp_path, run):
    folder = tmp_path / "broker"
    folder.mkdir()
    for name in ("passwords", "mosquitto.conf", "mosquitto.acl"):
        (folder / name).write_text("left by another user")
        (folder / name).chmod(0o666)
    broker = run(Broker)
    assert sorted(path.name for path in folder.iterdir()) == ["mosquitto.acl", "mosquitto.conf", "passwords"]
    for path in folder.iterdir():
        assert oct(path.stat().st_mode & 0o777) == "0o600"
        assert "secret" not in path.read_text()  # each password has it
    assert len(re.findall(r"(?m)^(?:energy2go|validator):\$[67]\$", (folder / "passwords").read_text())) == 2
    with Peer(broker) as peer:
        assert peer.lost == []


def test_a_folder_made_for_the_broker_is_its_owners(broker, tmp_path):
    assert oct((tmp_path / "broker").stat().st_mode & 0o777) == "0o700"


def test_no_command_line_shows_a_secret(run):
    secrets = {name: uuid.uuid4().hex for name in SECRETS}  # no other process knows them
    broker = run(Broker, **secrets)
    run(Equipment, broker)
    service = run(Service, broker, **secrets)
    wait_until(service.online, "all are online")
    lines = b""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines += (process / "cmdline").read_bytes() + b"\n"
    assert b"mosquitto" in lines
    assert b"gunicorn" in lines
    for secret in secrets.values():
        assert secret.encode() not in lines
