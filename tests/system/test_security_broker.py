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

OTHER = {"MQTT": "VALIDATOR", "VALIDATOR": "MQTT"}
READS = {"MQTT": {VERDICTS, STATUS}, "VALIDATOR": {QUESTIONS}}
WRITES = {"MQTT": {QUESTIONS}, "VALIDATOR": {VERDICTS, STATUS}}
TOPICS = [
    *(QUESTIONS, VERDICTS, STATUS),
    *("EQUIPMENT/STATUS", f"{STATUS}/x", f"{QUESTIONS}/", f"{VERDICTS}/x", "EQUIPMENT/x"),
    *(
        f"/{QUESTIONS}",
        QUESTIONS.lower(),
        "other/topic",
        "$other/topic",
        "$SYS/broker/version",
        "$CONTROL/x",
    ),
]
FILTERS = [
    *(
        "#",
        "$SYS/#",
        "$other/#",
        "$CONTROL/#",
        "/#",
        "EQUIPMENT/#",
        "+/+",
        "+/+/+",
        QUESTIONS,
        VERDICTS,
        STATUS,
    ),
    *(
        f"$share/{group}/{topic}"
        for group in ("validators", "energy2go", "mine")
        for topic in (QUESTIONS, VERDICTS)
    ),
    *("$share/mine/#", "$share/mine/$SYS/#"),
]


@pytest.mark.parametrize("version", ["mqttv31", "mqttv311", "mqttv5"])
def test_the_broker_refuses_a_wrong_password(run, broker, tmp_path, version):
    reader = run(Subscriber, broker, "MQTT", "-t", VERDICTS)
    strangers = [
        client("pub", broker, version=version),
        client("pub", broker, "VALIDATOR", version, VALIDATOR_PASSWORD="wrong"),
        client("pub", broker, "VALIDATOR", version, VALIDATOR_PASSWORD=""),
        client("pub", broker, "VALIDATOR", version, VALIDATOR_PASSWORD=ACCOUNTS["MQTT_PASSWORD"]),
        client(
            "pub", broker, "VALIDATOR", version, VALIDATOR_PASSWORD=ACCOUNTS["VALIDATOR_PASSWORD"].upper()
        ),
        client("pub", broker, "VALIDATOR", version, VALIDATOR_USERNAME="nobody"),
        client("pub", broker, "VALIDATOR", version, VALIDATOR_USERNAME=""),
    ]
    for stranger in strangers:
        command = [*stranger, "-q", "1", "-t", VERDICTS, "-m", "stranger"]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert refused.returncode != 0, command
        assert re.search("not authori[sz]ed", refused.stderr, re.IGNORECASE), command
    assert publish(broker, "VALIDATOR", VERDICTS, "last") == ""
    assert reader.received_before_the_last() == set()


@pytest.mark.parametrize("account", ["MQTT", "VALIDATOR"])
def test_an_account_reads_nothing_but_its_topics(run, account):
    # Mosquitto grants every subscription and delivers nothing, so let the other account publish anywhere.
    broker = run(
        AmendedBroker, acl=f"\nuser {OTHER[account]}_USERNAME\ntopic readwrite #\ntopic readwrite $other/#\n"
    )
    early, late = TOPICS[: len(TOPICS) // 2], TOPICS[len(TOPICS) // 2 :]
    everything = [option for topic in FILTERS for option in ("-t", topic)]
    for topic in early:
        publish(broker, OTHER[account], topic, "x", "-m", "retained", "-r")
    reader = run(Subscriber, broker, account, *everything)
    witness = run(Subscriber, broker, OTHER[account], "-t", "#")
    for topic in late + early:
        publish(broker, OTHER[account], topic)
    for topic in READS[account]:
        assert publish(broker, OTHER[account], topic, "last") == ""
    assert reader.received_before_the_last() == READS[account]
    assert witness.received_before_the_last() > READS[account] | {"other/topic", "EQUIPMENT/x"}


@pytest.mark.parametrize("account", ["MQTT", "VALIDATOR"])
def test_an_account_writes_nothing_but_its_topics(run, account):
    broker = run(
        AmendedBroker, acl=f"\nuser {OTHER[account]}_USERNAME\ntopic readwrite #\ntopic readwrite $other/#\n"
    )
    reader = run(Subscriber, broker, OTHER[account], "-t", "#", "-t", "$other/#")
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
    wills = [
        run(Subscriber, broker, "VALIDATOR", "-t", "x", *will(topic))
        for topic in (QUESTIONS, "other/topic", STATUS)
    ]
    for dying in wills:
        dying.kill()
    wait_until(lambda: (STATUS, "will") in reader.received(), "the will that is allowed")
    assert publish(broker, "VALIDATOR", VERDICTS, "last") == ""
    assert reader.received_before_the_last() == {STATUS}


def will(topic: str) -> list[str]:
    return ["--will-topic", topic, "--will-payload", "will", "--will-qos", "1"]


def test_what_is_too_large_is_refused_and_the_service_survives(run, broker, tmp_path):
    limit = int(
        re.search(r"^max_packet_size (\d+)$", (ROOT / "mosquitto.conf").read_text(), re.MULTILINE)[1]
    )
    run(Equipment, broker)
    service = run(Service, broker)
    wait_until(lambda: online(service), "all are online")
    reader = run(Subscriber, broker, "MQTT", "-t", VERDICTS, "-t", STATUS)
    (tmp_path / "large").write_bytes(b"x" * limit)
    for version in ("mqttv31", "mqttv311", "mqttv5"):
        for topic in (VERDICTS, STATUS):
            command = [
                *client("pub", broker, "VALIDATOR", version),
                "-q",
                "1",
                "-t",
                topic,
                "-f",
                str(tmp_path / "large"),
            ]
            subprocess.run(command, capture_output=True, timeout=60)
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


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_a_stranger_who_talks_nonsense_to_the_broker_is_cut_off(broker, nonsense):
    stranger = socket.create_connection(("127.0.0.1", broker.port), timeout=60)
    with stranger, contextlib.suppress(ConnectionError):
        stranger.sendall(NONSENSE[nonsense])
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
        assert not any(
            password in path.read_text() for name, password in ACCOUNTS.items() if "PASSWORD" in name
        )
    for name in ("MQTT", "VALIDATOR"):
        assert re.search(
            rf"^{ACCOUNTS[f'{name}_USERNAME']}:\$[67]\$", (folder / "passwords").read_text(), re.MULTILINE
        )
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
