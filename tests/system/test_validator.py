"""The real equipment, as it is shipped and under sanitizers, against a real Mosquitto."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from peer import Peer
from programs import ROOT, Broker, Equipment, Program, free_port, wait_until
from scripted import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    PUBACK,
    PUBLISH,
    SUBSCRIBE,
    Connection,
    ScriptedBroker,
    packet,
)

QUESTION, ANSWER, STATUS = "EQUIPMENT/VALIDATION", "EQUIPMENT/VALIDATION/RESPONSE", "EQUIPMENT/STATUS/"
GOOD_ID = "01890a5d-ac96-774b-bcce-b302099a8057"


# For tests that take long, or measure something.
plain_build = pytest.mark.parametrize("build", ["validator"], indirect=True)


class Witness(Peer):
    """Asks with the account of the service and notes what the equipment publishes."""

    def __init__(self, broker: Broker):
        super().__init__(broker, ANSWER, STATUS + "+", account="MQTT")
        self.qos = 1
        self.client.reconnect_delay_set(1, 1)

    @property
    def answers(self) -> list:
        return [message for message in self.messages if message.topic == ANSWER]

    def ask(self, payload, **properties) -> None:
        """Send a question: an id becomes a whole one, a dict JSON; properties are named as paho names them."""
        if isinstance(payload, str):
            payload = {"transaction_id": payload, "station_id": 1}
        if isinstance(payload, dict):
            payload = json.dumps(payload).encode()
        sent = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(sent, name, value)
        self.client.publish(QUESTION, payload, self.qos, properties=sent)

    def answer(self, number: int = 1):
        """The answer with this number once it is there."""
        wait_until(lambda: len(self.answers) >= number, f"answer {number}", 60)
        return self.answers[number - 1]

    def verdicts(self, ids: list[str]) -> dict:
        """Ask for each id and return the new answers, status by id."""
        before = len(self.answers)
        for transaction in ids:
            self.ask(transaction)
        self.answer(before + len(ids))
        new = [json.loads(answer.payload) for answer in self.answers[before:]]
        return {answer["transaction_id"]: answer["status"] for answer in new}

    def sees(self, status: str, name: str = "validator") -> None:
        """Wait until this is the last word on this equipment."""

        def last() -> str:
            words = [message.payload for message in self.messages if message.topic == STATUS + name]
            return words[-1].decode() if words else ""

        wait_until(lambda: last() == status, f"{name} is {status}")


def ids(count: int, seed: int = 7) -> list[str]:
    """The same ids in every run, so that no test passes or fails by chance."""
    numbers = random.Random(seed)
    return [str(uuid.UUID(int=numbers.getrandbits(128), version=4)) for _ in range(count)]


def a_newcomer_sees(status: str, broker: Broker, name: str = "validator") -> None:
    """The status is retained."""
    with Witness(broker) as newcomer:
        newcomer.sees(status, name)


def ignored(validator: Program) -> int:
    """How many payloads it says it ignored, one by one or as a number."""
    lines = [line for line in validator.said().splitlines() if "ignored" in line]
    return sum(int(line.split()[2]) if line.endswith("more") else 1 for line in lines)


@pytest.fixture(scope="session", params=["validator", "validator-asan"])
def build(request) -> str:
    """Each build in turn: the one that is shipped, and the one that finds what C hides."""
    make(request.param)
    return f"validator/{request.param}"


def make(target: str) -> str:
    """Run make in the equipment's folder and return what it printed."""
    command = ["make", "-s", "--no-print-directory", "-C", "validator", target]
    done = subprocess.run(
        command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def run(build, tmp_path, programs):
    """A function that starts the equipment for a broker; each one must end well, with nothing leaked."""
    started = []

    def start(broker: Broker, name="validator", online=False, ends=0, **options) -> Equipment:
        validator = Equipment(tmp_path, broker, build=build, name=name, **options).start()
        programs.append(validator)
        started.append((validator, ends))
        if online:
            wait_until(lambda: f"{name} is online" in validator.said(), f"{name} is online")
        return validator

    yield start
    for program, status in started:
        assert end(program) in (status, -signal.SIGKILL), program.said()
        assert "Sanitizer" not in program.said()
        assert "runtime error" not in program.said()


@pytest.fixture
def another_broker(tmp_path, programs):
    """A function that starts a Mosquitto without passwords, with these lines in its configuration."""

    def start(*lines: str, port: int | None = None) -> Broker:
        broker = Broker(tmp_path, port=port)
        lines = [
            f"listener {broker.port} 127.0.0.1",
            "allow_anonymous true",
            "log_dest stderr",
            "user root",
            *lines,
        ]
        (tmp_path / "another.conf").write_text("\n".join(lines) + "\n")
        mosquitto = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
        broker.command = [mosquitto, "-c", str(tmp_path / "another.conf")]
        programs.append(broker.start())
        return broker

    return start


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """A folder with the certificate of a CA that signed those of two brokers, and of one that signed nothing."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for ca in ("ca", "stranger"):
        key = ("-newkey", "rsa:2048", "-nodes", "-keyout", f"{ca}.key")
        openssl("req", "-x509", *key, "-subj", f"/CN={ca}", "-days", "2", "-out", f"{ca}.pem")
    for name, address in (("here", "DNS:localhost,IP:127.0.0.1"), ("elsewhere", "DNS:broker.example")):
        key = ("-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key")
        openssl(
            "req",
            *key,
            "-subj",
            f"/CN={name}",
            "-addext",
            f"subjectAltName={address}",
            "-out",
            f"{name}.csr",
        )
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-copy_extensions", "copy")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-days", "2", "-out", f"{name}.pem")
    return folder


@pytest.fixture
def witness(broker):
    with Witness(broker) as witness:
        yield witness


def end(program: Program, number: int = signal.SIGTERM, seconds: float = 15) -> int:
    """Send a signal and return the exit status. No SIGCONT: the leak sanitizer would never end."""
    program.process.send_signal(number)
    return program.process.wait(seconds)


def stops_at_once(program: Program, number: int = signal.SIGTERM) -> bool:
    """True if the signal ends it within a second, without complaint."""
    return end(program, number, 1) == 0


# What it is built from


def test_its_rules_hold():
    assert ", 0 failed" in make("test")


def test_the_analyzer_finds_nothing():
    assert make("lint") == ""


# What it answers


def test_it_confirms_the_share_it_was_told(run, broker, witness):
    run(broker, online=True, VALIDATOR_CONFIRM_RATE="0.6")
    verdicts = witness.verdicts(ids(2000))
    assert len(verdicts) == 2000
    assert set(verdicts.values()) == {"COMPLETED", "ERROR"}
    assert 0.57 < list(verdicts.values()).count("COMPLETED") / 2000 < 0.63


@pytest.mark.parametrize(("rate", "status"), [("0", "ERROR"), ("1", "COMPLETED"), ("1.0", "COMPLETED")])
def test_a_rate_may_be_all_or_nothing(run, broker, witness, rate, status):
    run(broker, online=True, VALIDATOR_CONFIRM_RATE=rate)
    assert set(witness.verdicts(ids(200)).values()) == {status}


def test_asked_again_it_answers_the_same(run, broker, witness):
    first = run(broker, online=True)
    verdicts = witness.verdicts(ids(100))
    assert witness.verdicts(ids(100)) == verdicts
    end(first)
    run(broker, name="another", online=True)
    assert witness.verdicts(ids(100)) == verdicts


def test_another_seed_gives_other_verdicts(run, broker, witness):
    first = run(broker, online=True)
    verdicts = witness.verdicts(ids(100))
    end(first)
    run(broker, name="another", online=True, VALIDATOR_SEED="2")
    assert witness.verdicts(ids(100)) != verdicts


def test_an_answer_is_json_about_the_id_in_lower_case(run, broker, witness):
    run(broker, online=True, VALIDATOR_CONFIRM_RATE="1")
    witness.ask({"transaction_id": GOOD_ID.upper(), "station_id": 2147483647, "extra": [1, {"é": None}]})
    answer = witness.answer()
    assert json.loads(answer.payload) == {"transaction_id": GOOD_ID, "status": "COMPLETED"}
    assert answer.properties.ContentType == "application/json"
    assert answer.qos == 1
    assert not answer.retain


@pytest.mark.parametrize("sent", [GOOD_ID.encode(), b"", b"\0", bytes(range(256)), b"\xff" * 1024])
def test_correlation_data_comes_back_as_it_was(run, broker, witness, sent):
    run(broker, online=True)
    witness.ask(GOOD_ID, CorrelationData=sent)
    assert witness.answer().properties.CorrelationData == sent


def test_a_question_without_correlation_data_gets_an_answer_without_it(run, broker, witness):
    run(broker, online=True)
    witness.ask(GOOD_ID)
    assert not hasattr(witness.answer().properties, "CorrelationData")


def test_longer_correlation_data_is_refused_with_a_line(run, broker, witness):
    validator = run(broker, online=True)
    witness.ask(ids(1)[0], CorrelationData=b"x" * 1025)
    witness.ask(GOOD_ID, CorrelationData=b"x")
    assert json.loads(witness.answer().payload)["transaction_id"] == GOOD_ID
    assert "ignored, the correlation data is longer than 1024 bytes: {" in validator.said()


def test_a_response_topic_is_not_followed(run, broker, witness):
    run(broker, online=True)
    witness.ask(GOOD_ID, ResponseTopic=STATUS + "another", CorrelationData=b"x")
    assert witness.answer().topic == ANSWER
    assert {message.topic for message in witness.messages} == {ANSWER, STATUS + "validator"}


def test_a_burst_is_answered_to_the_last_question(run, broker, witness):
    run(broker, online=True)
    assert witness.verdicts(ids(1000)).keys() == set(ids(1000))


def test_two_share_the_work_and_answer_once(run, broker, witness):
    two = [run(broker, name=name, online=True, VALIDATOR_VERBOSE="1") for name in ("left", "right")]
    assert witness.verdicts(ids(200)).keys() == set(ids(200))
    assert len(witness.answers) == 200
    shares = [len(validator.output.read_text().splitlines()) for validator in two]
    assert sum(shares) == 200
    assert min(shares) > 0
    for name in ("left", "right"):
        a_newcomer_sees("online", broker, name)


def test_it_goes_on_receiving_while_answers_wait(run, broker, witness):
    validator = run(broker, online=True, VALIDATOR_DELAY_MS="1500", VALIDATOR_VERBOSE="1")
    asked_at = time.monotonic()
    for transaction in ids(50):
        witness.ask(transaction)
    wait_until(lambda: len(validator.output.read_text().splitlines()) == 50, "50 questions are received")
    assert witness.answers == []
    witness.answer()
    assert time.monotonic() - asked_at >= 1.5
    witness.answer(50)
    assert [json.loads(answer.payload)["transaction_id"] for answer in witness.answers] == ids(50)


def test_one_line_per_question_tells_id_station_and_verdict(run, broker, witness):
    validator = run(broker, online=True, VALIDATOR_VERBOSE="1", VALIDATOR_CONFIRM_RATE="0")
    witness.ask({"transaction_id": GOOD_ID, "station_id": 17})
    witness.answer()
    assert validator.output.read_text() == f"{GOOD_ID} station 17 ERROR\n"


# What it survives

GARBAGE = {
    "the question is too long": [b"x" * 1025, b"[" * 60000, b'{"transaction_id": "' + b"a" * 2000],
    "the question is not UTF-8": [b"\xff\xfe", b"\x80", b'{"transaction_id": "\xc3"}', b"\xed\xa0\x80"],
    "the question is not JSON": [
        b"",
        b"{",
        b"transaction 7",
        b"{}{}",
        b"[" * 1024,
        b"\x1b[2J",
        b'{"a": "\\u0000"}',
    ],
    "the question is not a JSON object": [b"null", b"[]", b"17", b'"text"', b"[" * 300 + b"]" * 300],
    "transaction_id is missing": [b"{}", b'{"station_id": 1}'],
    "transaction_id is not a string": [b'{"transaction_id": 7, "station_id": 1}'],
    "transaction_id is not a UUID": [
        b'{"transaction_id": "7", "station_id": 1}',
        b'{"transaction_id": "%s%n"}',
    ],
    "station_id is missing": [json.dumps({"transaction_id": GOOD_ID}).encode()],
    "station_id is not a whole number from 1 to 2147483647": [
        json.dumps({"transaction_id": GOOD_ID, "station_id": station}).encode()
        for station in (0, -1, 1.0, 1.5, 2**31, 1e300, "1", True, None, [1])
    ],
}


@pytest.mark.parametrize("sentence", GARBAGE)
def test_garbage_gets_a_line_and_the_next_question_an_answer(run, broker, witness, sentence):
    validator = run(broker, online=True)
    for payload in GARBAGE[sentence]:
        witness.ask(payload)
    witness.ask(GOOD_ID)
    assert json.loads(witness.answer().payload)["transaction_id"] == GOOD_ID
    assert validator.said().count(f"ignored, {sentence}: ") == len(GARBAGE[sentence])


def test_an_excerpt_is_short_and_harmless(run, broker, witness):
    validator = run(broker, online=True)
    rude = b"\x1b[2J\nvalidator: is online \xf0\x9f\x94\x8b \x7f"
    witness.ask(rude + b"a" * 900)
    witness.ask(GOOD_ID)
    witness.answer()
    tame = r"\x1B[2J\x0Avalidator: is online \xF0\x9F\x94\x8B \x7F" + "a" * (64 - len(rude)) + " ..."
    assert validator.said().splitlines()[-1] == f"validator: ignored, the question is not JSON: {tame}"


def test_a_flood_of_garbage_is_counted_rather_than_told(run, broker, witness):
    validator = run(broker, online=True)
    for _ in range(2000):
        witness.ask(b"garbage")
    witness.ask(GOOD_ID)
    witness.answer()
    wait_until(lambda: ignored(validator) == 2000, "every one is told or counted")
    assert len(validator.said().splitlines()) < 1000


def test_more_answers_than_can_wait_are_not_taken(run, broker, witness):
    validator = run(broker, online=True, VALIDATOR_DELAY_MS="3600000")
    for transaction in ids(16384 + 30):
        witness.ask(transaction)
    wait_until(lambda: ignored(validator) == 30, "the last 30 are ignored", 60)
    assert "ignored, too many answers are waiting: {" in validator.said()
    assert witness.answers == []


def test_the_end_of_its_reader_is_not_its_own(build, broker, witness, programs):
    """Neither a pipe that is closed nor one that is full stops it."""
    for close in (True, False):
        name = f"closed-{close}"
        environment = broker.environment_of_clients | {"VALIDATOR_ID": name, "VALIDATOR_VERBOSE": "1"}
        reader, writer = os.pipe()
        validator = subprocess.Popen([ROOT / build], env=environment, stdout=writer, stderr=writer)
        programs.append(validator)
        os.close(writer)
        witness.sees("online", name)
        if close:
            os.close(reader)
        assert len(witness.verdicts(ids(1500))) == 1500
        validator.terminate()
        assert validator.wait(1) == 0
        if not close:
            os.close(reader)


# How it comes and goes


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


def connections(program: Program, state: str) -> list:
    """The program's IPv4 connections in this state: "01" established, "02" being made (see proc(5), net/tcp)."""
    own = {os.readlink(entry) for entry in Path(f"/proc/{program.pid}/fd").iterdir()}
    rows = [line.split() for line in Path(f"/proc/{program.pid}/net/tcp").read_text().splitlines()[1:]]
    return [row for row in rows if row[3] == state and f"socket:[{row[9]}]" in own]


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


def waits(program: Program) -> int:
    """How often it has gone to sleep until now, each time until a timer, a message or a signal."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def ticks(program: Program) -> int:
    """The CPU it has used until now, in hundredths of a second."""
    return sum(map(int, Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


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
    tls = {"MQTT_CA_FILE": f"{certificates}/ca.pem"} if "TLS" in there_is else {}
    validator = run(broker, online=there_is == "a broker", **tls)
    first_wait, first_tick = waits(validator), ticks(validator)
    wait_until(lambda: waits(validator) >= first_wait + 8, "it has slept eight times", 30)
    assert ticks(validator) - first_tick <= 5


# What a broker may say


@pytest.fixture
def scripted(request):
    """A function that starts a scripted broker, which is closed after the test."""

    def start(**reactions) -> ScriptedBroker:
        broker = ScriptedBroker(**reactions)
        broker.__enter__()
        request.addfinalizer(lambda: broker.__exit__())
        return broker

    return start


def nothing(connection: Connection, packet) -> None:
    """A reaction that does nothing."""


def connack(reason: int = 0, **properties):
    """A reaction to CONNECT."""
    return lambda connection, packet: connection.connack(reason, **properties)


def in_turn(*reactions):
    """A reaction that is another one each time, and in the end remains the last one."""
    left = list(reactions)
    return lambda connection, packet: (left.pop(0) if len(left) > 1 else left[0])(connection, packet)


def ask(connection: Connection, transactions: list[str], **properties) -> None:
    """Send the questions about these ids to the equipment."""
    for transaction in transactions:
        question = json.dumps({"transaction_id": transaction, "station_id": 1}).encode()
        connection.publish(QUESTION, question, **properties)


def answered(connection: Connection) -> list[str]:
    """The ids that were answered on this connection, in this order."""
    return [json.loads(answer.payload)["transaction_id"] for answer in connection.published(ANSWER)]


def online(broker: ScriptedBroker, number: int = 1) -> Connection:
    """The connection with this number, once the equipment has published that it is online."""
    connection = broker.connection(number)
    wait_until(lambda: connection.published(STATUS + "validator"), "it is online")
    return connection


def lines(validator: Program) -> list[str]:
    """Why it was not connected, one line each time."""
    return [
        line.partition("trying again: ")[2]
        for line in validator.said().splitlines()
        if "trying again" in line
    ]


def test_it_introduces_itself(run, scripted):
    broker = scripted()
    run(broker, online=True)
    connection = online(broker)
    (connect,), (subscribe,) = connection.received(CONNECT), connection.received(SUBSCRIBE)
    assert (connect.client_id, connect.keepalive, connect.clean_start) == ("validator", 5, True)
    will = connect.will
    assert (will.topic, will.payload, will.qos, will.retain) == (STATUS + "validator", b"offline", 1, True)
    assert subscribe.topics == ["$share/validators/" + QUESTION]
    (status,) = connection.received(PUBLISH)
    assert (status.payload, status.qos, status.retain) == (b"online", 1, True)


def test_it_is_online_only_once_the_subscription_is_granted(run, scripted):
    broker = scripted(subscribe=nothing)
    validator = run(broker)
    connection = broker.connection()
    wait_until(lambda: connection.received(SUBSCRIBE), "it subscribes")
    ask(connection, [GOOD_ID])
    wait_until(lambda: connection.received(PUBACK), "it has received a question")
    assert connection.received(PUBLISH) == []
    assert "is online" not in validator.said()
    connection.suback(connection.received(SUBSCRIBE)[0].id, [1])
    wait_until(lambda: answered(connection) == [GOOD_ID], "it answers")
    assert connection.received(PUBLISH)[0].payload == b"online"


@pytest.mark.parametrize("codes", [[0], [1], [1, 1, 1], [1] * 200])
def test_a_suback_may_have_any_number_of_codes(run, scripted, codes):
    broker = scripted(subscribe=lambda connection, packet: connection.suback(packet.id, codes))
    run(broker, online=True)
    ask(online(broker), [GOOD_ID])
    wait_until(lambda: answered(broker.connection()) == [GOOD_ID], "it answers")


@pytest.mark.parametrize("codes", [[], [0x87], [1, 0x87]])
def test_a_suback_that_does_not_grant_is_a_refusal(run, scripted, codes):
    broker = scripted(subscribe=lambda connection, packet: connection.suback(packet.id, codes))
    validator = run(broker)
    broker.connection(2)
    reason = "Not authorized" if codes else "no reason code"
    assert lines(validator) == [f"the broker refuses the subscription: {reason}"]
    assert broker.connection().received(PUBLISH) == []


@plain_build
@pytest.mark.parametrize(("late", "waits_for"), [("connect", "CONNACK"), ("subscribe", "SUBACK")])
def test_it_waits_ten_seconds_for(run, scripted, late, waits_for):
    """A late answer is an answer; without one it says so and connects again."""
    broker = scripted(**{late: nothing})
    validator = run(broker)
    started = time.monotonic()
    connection = broker.connection()
    wait_until(lambda: time.monotonic() > started + 7, "more than one keepalive is over")
    assert not connection.closed
    if late == "connect":
        connection.connack()
    else:
        connection.suback(connection.received(SUBSCRIBE)[0].id, [1])
    online(broker)
    connection.close()
    started = time.monotonic()
    wait_until(
        lambda: lines(validator)[-1] == "the broker does not answer", f"it has waited for {waits_for}", 20
    )
    assert 9.5 < time.monotonic() - started < 14


@plain_build
def test_a_broker_that_never_acknowledges_is_left(run, scripted):
    broker = scripted(publish=nothing)
    validator = run(broker)
    connection = online(broker)
    ask(connection, ids(50))
    wait_until(
        lambda: "the broker does not acknowledge what is published" in validator.said(), "it says so", 20
    )
    assert answered(connection) == ids(50)[:19]  # `online` is the twentieth


@pytest.mark.parametrize("limit", [1, 3, 20, 65535])
def test_it_respects_receive_maximum(run, scripted, limit):
    broker = scripted(connect=connack(ReceiveMaximum=limit), publish=nothing)
    run(broker)
    connection = online(broker)
    ask(connection, ids(60))
    acknowledged, total = 0, 61
    while acknowledged < total:
        wanted = min(acknowledged + min(limit, 20), total)
        wait_until(
            lambda wanted=wanted: len(connection.received(PUBLISH)) >= wanted, f"{wanted} are published"
        )
        assert len(connection.received(PUBLISH)) == wanted
        connection.puback(connection.received(PUBLISH)[acknowledged].id)
        acknowledged += 1
    assert answered(connection) == ids(60)


def test_it_respects_maximum_qos(run, scripted):
    """The first CONNECT has a Will with QoS 1, which such a broker refuses (MQTT 5, 3.2.2.3.4)."""
    broker = scripted(connect=in_turn(connack(0x9B), connack(MaximumQoS=0)))
    validator = run(broker)
    connection = online(broker, 2)
    ask(connection, ids(100))
    wait_until(lambda: answered(connection) == ids(100), "all are answered")
    assert {packet.qos for packet in connection.received(PUBLISH)} == {0}
    will = connection.received(CONNECT)[0].will
    assert (will.payload, will.qos, will.retain) == (b"offline", 0, True)
    assert lines(validator) == ["the broker refuses the connection: QoS not supported"]


@pytest.mark.parametrize("properties", [{}, {"RetainAvailable": 0}])
def test_it_works_without_retained_messages(run, scripted, properties):
    broker = scripted(connect=in_turn(connack(0x9A), connack(**properties)))
    run(broker, online=True)
    connection = broker.connection(2)
    assert connection.received(CONNECT)[0].will is None
    ask(connection, ids(30))
    wait_until(lambda: answered(connection) == ids(30), "all are answered")
    assert len(connection.received(PUBLISH)) == 30
    assert not any(packet.retain for packet in connection.received(PUBLISH))
    connection.close()
    wait_until(lambda: broker.connection(3).received(CONNECT), "it connects again")
    assert broker.connection(3).received(CONNECT)[0].will is not None


def test_it_respects_maximum_packet_size(run, scripted):
    """An answer that is too large does not hold up the others."""
    broker = scripted(connect=connack(MaximumPacketSize=300), publish=lambda c, packet: c.puback(packet.id))
    validator = run(broker, VALIDATOR_CONFIRM_RATE="1")
    connection = online(broker)
    transactions = ids(400)
    for size, transaction in enumerate(transactions):
        ask(connection, [transaction], CorrelationData=b"x" * size)
    ask(connection, [GOOD_ID])
    wait_until(lambda: answered(connection)[-1:] == [GOOD_ID], "the last one is answered")
    sizes = [packet.size for packet in connection.published(ANSWER)]
    assert 297 <= max(sizes) <= 300
    assert answered(connection)[:-1] == transactions[: len(sizes) - 1]
    assert "an answer is larger than the broker's Maximum Packet Size" in validator.said()


@pytest.mark.parametrize("line", ["max_qos 0", "max_qos 1", "retain_available false", "max_packet_size 300"])
def test_it_works_with_a_limited_mosquitto_and_with_the_next_one(run, another_broker, line):
    broker = another_broker(line)
    broker.environment_of_clients |= {"VALIDATOR_USERNAME": ""}
    validator = run(broker)
    for count in (1, 2):
        wait_until(lambda count=count: validator.said().count("is online") == count, "it is online")
        with Witness(broker) as witness:
            assert len(witness.verdicts(ids(100))) == 100
            if count == 2:
                witness.sees("online")
        broker.stop()
        if count == 1:
            another_broker(port=broker.port)
    assert "does not retain" in validator.said() or "retain" not in line


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "answers with something that is not MQTT 5"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "answers with something that is not MQTT 5"),
        (packet(CONNACK, b"\0\0"), "answers with something that is not MQTT 5"),  # MQTT 3.1.1: accepted
        (packet(CONNACK, b"\0\1"), "answers with something that is not MQTT 5"),  # MQTT 3.1.1: wrong version
        (
            packet(CONNACK, b"\0\5"),
            "answers with something that is not MQTT 5",
        ),  # MQTT 3.1.1: not authorized
        (packet(CONNACK, b"\0\5\0"), "answers with something that is not MQTT 5"),
        (packet(CONNACK, b"\0\x84\0"), "answers with something that is not MQTT 5"),
        (packet(CONNACK, b"\0\x87\0"), "refuses the connection: Not authorized"),
        (packet(CONNACK, b"\0\x88\0"), "refuses the connection: Server unavailable"),
        (
            packet(CONNACK, b"\0\0\0") + packet(DISCONNECT, b"\x8b\0"),
            "closed the connection: Server shutting down",
        ),
        (packet(CONNACK, b"\0\0\0") + packet(DISCONNECT, b"\0"), "closed the connection"),
        (b"", "closed the connection"),
    ],
)
def test_each_way_to_be_disconnected_has_a_sentence(run, scripted, says, sentence):
    """And the sentence is gone with the connection: the next one is closed without a word."""

    def connect(connection: Connection, packet) -> None:
        connection.send(says if len(broker.connections) == 1 else b"")
        if b"-" not in says:  # an SSH server stays, and waits
            connection.close()

    broker = scripted(connect=connect)
    validator = run(broker)
    broker.connection(3)
    if b"-" not in says:
        expected = [f"the broker {sentence}", "the broker closed the connection"]
        assert lines(validator) == expected[: 1 if sentence == "closed the connection" else 2]
    assert lines(validator)[0] == f"the broker {sentence}"


def test_a_refused_answer_is_told_and_the_connection_stays(run, scripted):
    broker = scripted(publish=lambda connection, packet: connection.puback(packet.id, 0x87))
    validator = run(broker)
    connection = online(broker)
    ask(connection, ids(60))
    wait_until(lambda: answered(connection) == ids(60), "all are sent")
    assert validator.said().count("the broker refuses what is published: Not authorized\n") == 1
    assert not connection.closed


def test_two_with_one_id_say_that_each_needs_its_own(run, broker):
    two = [run(broker, VALIDATOR_ID="twin", name=name) for name in ("one", "other")]
    for validator in two:
        wait_until(
            lambda validator=validator: "VALIDATOR_ID=twin; each one needs its own" in validator.said(),
            "it says",
        )
    wait_until(lambda: sum(validator.said().count("is online") for validator in two) >= 4, "they take turns")


def test_nothing_is_carried_into_the_next_connection(run, scripted):
    """What was not acknowledged is not sent again; what waited is sent. The service asks again for the rest."""
    broker = scripted(publish=nothing)
    run(broker)
    ask(online(broker), ids(40))
    wait_until(lambda: len(answered(broker.connection())) == 19, "the window is full")
    wait_until(lambda: len(broker.connection().received(PUBACK)) == 40, "all questions are received")
    broker.connection().close()
    connection = online(broker, 2)
    wait_until(lambda: len(answered(connection)) == 19, "the window is full again")
    assert answered(connection) == ids(40)[19:38]
    assert not any(packet.dup for packet in connection.received(PUBLISH))
    connection.reset()
    wait_until(lambda: answered(online(broker, 3)) == ids(40)[38:], "the rest is sent")


@pytest.mark.parametrize("state", ["connecting", "subscribing", "blocked"])
def test_it_stops_in_every_state(run, scripted, state):
    silent = {"connecting": {"connect": nothing}, "subscribing": {"subscribe": nothing}, "blocked": {}}[
        state
    ]
    broker = scripted(**silent)
    validator = run(broker, VALIDATOR_VERBOSE="1")
    connection = broker.connection()
    if state == "connecting":
        wait_until(lambda: connection.received(CONNECT), "it connects")
    if state == "subscribing":
        wait_until(lambda: connection.received(SUBSCRIBE), "it subscribes")
    if state == "blocked":
        online(broker)
        connection.may_read.clear()
        ask(connection, ids(100), CorrelationData=b"x" * 1024)
        wait_until(lambda: len(validator.output.read_text().splitlines()) > 19, "its window is full")
    assert stops_at_once(validator)


def test_it_leaves_with_its_will(run, scripted):
    broker = scripted()
    validator = run(broker)
    connection = online(broker)
    assert stops_at_once(validator)
    wait_until(lambda: connection.received(DISCONNECT), "it says goodbye")
    assert connection.received(DISCONNECT)[0].reason == 4


def test_the_first_attempts_follow_each_other_quickly(run, scripted, tmp_path):
    port = free_port()
    validator = run(Broker(tmp_path, port=port))
    wait_until(lambda: "cannot be reached: Connection refused" in validator.said(), "it has tried")
    started = time.monotonic()
    online(scripted(port=port))
    assert time.monotonic() - started < 0.9


def test_a_host_without_an_address_is_named(run, tmp_path):
    validator = run(Broker(tmp_path), MQTT_HOST="no-such-host.invalid")
    wait_until(lambda: lines(validator), "it has tried")
    assert lines(validator)[0].startswith("the broker cannot be reached: ")


@plain_build
def test_it_needs_less_than_6_mb(run, broker, witness):
    validator = run(broker, online=True)
    for turn in range(3):
        assert len(witness.verdicts(ids(1000, seed=turn))) == 1000
    status = Path(f"/proc/{validator.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 6 * 1024


# What it is told


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
        *(("MQTT_CA_FILE", value) for value in ("/nowhere/ca.pem", "validator/nothing")),
        ("VALIDATOR_USERNAME", "x" * 65536),
        ("VALIDATOR_PASSWORD", "x" * 65536),
    ],
)
def test_a_bad_value_stops_it_with_a_sentence(run, tmp_path, variable, value):
    validator = run(Broker(tmp_path), ends=2, **{variable: value})
    assert validator.process.wait(5) == 2
    assert validator.said().startswith(f"validator: {variable} must ")
    assert validator.said().count("\n") == 1


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


@pytest.mark.parametrize(
    ("host", "good"), [("desk.example", True), ("desk_7", True), ("a b", False), ("é", False)]
)
def test_a_host_name_must_be_good_for_an_id(build, broker, tmp_path, host, good):
    """In a name space of its own, where the host can be given any name."""
    own = ["unshare", "--user", "--map-root-user", "--uts"]
    if subprocess.run([*own, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine does not allow name spaces")
    script = 'printf %s "$1" > /proc/sys/kernel/hostname && exec "$2"'
    environment = broker.environment_of_clients | {"PATH": os.environ["PATH"], "VALIDATOR_ID": ""}
    with (tmp_path / "log").open("wb") as log:
        validator = subprocess.Popen(
            [*own, "sh", "-c", script, "sh", host, ROOT / build], env=environment, stderr=log
        )
    if good:
        a_newcomer_sees("online", broker, host.replace(".", "-"))
        validator.terminate()
    assert validator.wait(10) == (0 if good else 2)
    assert good or (tmp_path / "log").read_text().startswith(
        "validator: VALIDATOR_ID must be set: the host name "
    )


# Over TLS


@pytest.fixture
def tls_broker(another_broker, certificates):
    """A function that starts a Mosquitto with one of the certificates."""

    def start(name: str, port: int | None = None) -> Broker:
        return another_broker(
            f"certfile {certificates}/{name}.pem", f"keyfile {certificates}/{name}.key", port=port
        )

    return start


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_it_speaks_tls(run, tls_broker, certificates, host):
    broker = tls_broker("here")
    validator = run(broker, online=True, MQTT_HOST=host, MQTT_CA_FILE=str(certificates / "ca.pem"))
    assert stops_at_once(validator)


@pytest.mark.parametrize(("broker", "ca"), [("here", "stranger"), ("elsewhere", "ca")])
def test_it_trusts_no_stranger(run, tls_broker, certificates, broker, ca):
    validator = run(tls_broker(broker), MQTT_CA_FILE=str(certificates / f"{ca}.pem"))
    wait_until(lambda: "verif" in validator.said(), "it has refused the certificate")
    assert "is online" not in validator.said()
    assert stops_at_once(validator)


def test_tls_may_come_later(run, tls_broker, certificates, tmp_path):
    port = free_port()
    validator = run(Broker(tmp_path, port=port), MQTT_CA_FILE=str(certificates / "ca.pem"))
    wait_until(lambda: "trying again" in validator.said(), "it has tried")
    tls_broker("here", port)
    wait_until(lambda: "is online" in validator.said(), "it is online")


def test_a_ca_file_that_vanishes_does_not_end_it(run, tls_broker, certificates, tmp_path):
    ca = tmp_path / "ca.pem"
    shutil.copy(certificates / "ca.pem", ca)
    broker = tls_broker("here")
    validator = run(broker, online=True, MQTT_CA_FILE=str(ca))
    ca.unlink()
    broker.stop()
    wait_until(lambda: "MQTT_CA_FILE must name" in validator.said(), "it misses the file")
    shutil.copy(certificates / "ca.pem", ca)
    broker.start()
    wait_until(lambda: validator.said().count("is online") == 2, "it is online again")


@plain_build
def test_a_reset_during_the_handshake_is_noticed(run, scripted, certificates):
    broker = scripted(accept=Connection.reset)
    validator = run(broker, MQTT_CA_FILE=str(certificates / "ca.pem"))
    broker.connection(3, 5)
    assert "the broker " in lines(validator)[0]
    assert ticks(validator) < 30
