"""The broker's two accounts: what each may read and write, and who sees the passwords."""

import contextlib
import re
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from checks import SECRETS, online, settles
from mosquitto import QUESTIONS, STATUS, VERDICTS, AmendedBroker, Subscriber, client, publish
from programs import ACCOUNTS, ROOT, Broker, Equipment, Service, wait_until

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


@pytest.mark.parametrize("version", ["mqttv31", "mqttv311", "mqttv5"])
def test_the_broker_refuses_a_wrong_password(run, broker, tmp_path, version):
    reader = run(Subscriber, broker, "MQTT", "-t", VERDICTS)
    wrong = [
        {"VALIDATOR_PASSWORD": "wrong"},
        {"VALIDATOR_PASSWORD": ""},
        {"VALIDATOR_PASSWORD": ACCOUNTS["MQTT_PASSWORD"]},
        {"VALIDATOR_PASSWORD": ACCOUNTS["VALIDATOR_PASSWORD"].upper()},
        {"VALIDATOR_USERNAME": "nobody"},
        {"VALIDATOR_USERNAME": ""},
    ]
    strangers = [client("pub", broker, "VALIDATOR", version, **instead) for instead in wrong]
    strangers.append(client("pub", broker, version=version))
    for stranger in strangers:
        command = [*stranger, "-q", "1", "-t", VERDICTS, "-m", "stranger"]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert refused.returncode != 0, command
        assert re.search("not authori[sz]ed", refused.stderr, re.IGNORECASE), command
    assert publish(broker, "VALIDATOR", VERDICTS, "last") == ""
    assert reader.received_before_the_last() == set()


@pytest.fixture
def lax(run):
    """A function that starts a broker that lets one account do anything."""
    everything = "\nuser {}_USERNAME\ntopic readwrite #\ntopic readwrite $other/#\n"
    return lambda account: run(AmendedBroker, acl=everything.format(account))


@pytest.mark.parametrize(("account", "other"), [("MQTT", "VALIDATOR"), ("VALIDATOR", "MQTT")])
def test_an_account_reads_nothing_but_its_topics(run, lax, account, other):
    broker = lax(other)
    early, late = TOPICS[: len(TOPICS) // 2], TOPICS[len(TOPICS) // 2 :]
    for topic in early:
        publish(broker, other, topic, "x", "-m", "retained", "-r")
    reader = run(Subscriber, broker, account, *[option for topic in FILTERS for option in ("-t", topic)])
    witness = run(Subscriber, broker, other, "-t", "#")
    for topic in late + early:
        publish(broker, other, topic)
    for topic in READS[account]:
        assert publish(broker, other, topic, "last") == ""
    assert reader.received_before_the_last() == READS[account]
    assert witness.received_before_the_last() > READS[account] | {"other/topic", "EQUIPMENT/x"}


@pytest.mark.parametrize(("account", "other"), [("MQTT", "VALIDATOR"), ("VALIDATOR", "MQTT")])
def test_an_account_writes_nothing_but_its_topics(run, lax, account, other):
    broker = lax(other)
    reader = run(Subscriber, broker, other, "-t", "#", "-t", "$other/#")
    for topic in TOPICS:
        for options in (("-m", "x"), ("-m", "retained", "-r")):
            complaint = publish(broker, account, topic, "x", *options)
            assert ("Not authorized" in complaint) == (topic not in WRITES[account]), (topic, complaint)
    for topic in WRITES[account]:
        assert publish(broker, account, topic, "last") == ""
    assert reader.received_before_the_last() == WRITES[account]


def test_a_last_will_goes_no_further_than_its_account(run):
    broker = run(AmendedBroker, acl="\nuser MQTT_USERNAME\ntopic readwrite #\n")
    reader = run(Subscriber, broker, "MQTT", "-t", "#")
    will = ["-t", "x", "--will-payload", "will", "--will-qos", "1", "--will-topic"]
    topics = QUESTIONS, "other/topic", STATUS
    for dying in [run(Subscriber, broker, "VALIDATOR", *will, topic) for topic in topics]:
        dying.kill()
    wait_until(lambda: (STATUS, "will") in reader.received(), "the will that is allowed")
    assert publish(broker, "VALIDATOR", VERDICTS, "last") == ""
    assert reader.received_before_the_last() == {STATUS}


def test_what_is_too_large_is_refused_and_the_service_survives(run, broker, tmp_path):
    limit = re.search(r"^max_packet_size (\d+)$", (ROOT / "mosquitto.conf").read_text(), re.MULTILINE)[1]
    run(Equipment, broker)
    service = run(Service, broker)
    wait_until(lambda: online(service), "all are online")
    reader = run(Subscriber, broker, "MQTT", "-t", VERDICTS, "-t", STATUS)
    (tmp_path / "large").write_bytes(b"x" * int(limit))
    for topic in (VERDICTS, STATUS):
        publish(broker, "VALIDATOR", topic, "", "-f", str(tmp_path / "large"))
    assert publish(broker, "VALIDATOR", VERDICTS, "last") == ""
    assert reader.received_before_the_last() == {STATUS}  # its "online"
    assert "x" * 100 not in reader.output.read_text()
    assert settles(service)
    assert "was lost" not in service.said()


NONSENSE = {
    "a CONNECT of 256 MB": b"\x10\xff\xff\xff\x7f\0\4MQTT\5",
    "a length that never ends": b"\x10\x80\x80\x80\x80\x80\1",
    "a PUBLISH before any CONNECT": b"\x30\x0a\0\4abcdxxxx",
    "HTTP": b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n",
    "TLS": b"\x16\3\1\2\0\1\0\1\xfc\3\3" + bytes(600),
}


def test_a_stranger_who_talks_nonsense_to_the_broker_is_cut_off(broker):
    for nonsense in NONSENSE.values():
        stranger = socket.create_connection(("127.0.0.1", broker.port), timeout=60)
        with stranger, contextlib.suppress(ConnectionError):
            stranger.sendall(nonsense)
            while stranger.recv(4096):
                pass
    assert publish(broker, "VALIDATOR", VERDICTS) == ""


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
    hashes = re.findall(
        r"^(?:energy2go|validator):\$[67]\$", (folder / "passwords").read_text(), re.MULTILINE
    )
    assert len(hashes) == 2
    assert publish(broker, "VALIDATOR", VERDICTS) == ""


def test_a_folder_made_for_the_broker_is_its_owners(broker, tmp_path):
    assert oct((tmp_path / "broker").stat().st_mode & 0o777) == "0o700"


def command_lines() -> bytes:
    """The command lines of all processes on this machine."""
    lines = b""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines += (process / "cmdline").read_bytes() + b"\n"
    return lines


def test_no_command_line_shows_a_secret(run):
    secrets = {name: uuid.uuid4().hex for name in SECRETS}  # no other process knows them
    broker = run(Broker, **secrets)
    run(Equipment, broker)
    service = run(Service, broker, **secrets)
    wait_until(lambda: online(service), "all are online")
    lines = command_lines()
    assert b"mosquitto" in lines
    assert b"gunicorn" in lines
    for secret in secrets.values():
        assert secret.encode() not in lines
