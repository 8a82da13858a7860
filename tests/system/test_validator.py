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

QUESTION, ANSWER, STATUS = "EQUIPMENT/VALIDATION", "EQUIPMENT/VALIDATION/RESPONSE", "EQUIPMENT/STATUS/"
GOOD_ID = "01890a5d-ac96-774b-bcce-b302099a8057"


class Witness(Peer):
    """Asks with the account of the service and notes what the equipment publishes."""

    def __init__(self, broker: Broker):
        super().__init__(broker, ANSWER, STATUS + "+", account="MQTT")
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
        self.client.publish(QUESTION, payload, qos=1, properties=sent)

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
    """A function that starts a Mosquitto which lets everybody in, and has these lines in its configuration."""

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
    """Send a signal and return the exit status. No SIGCONT: it makes the leak sanitizer wait for ever."""
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


@pytest.mark.parametrize("sent", [GOOD_ID.encode(), b"\0", bytes(range(128)), b"\xff" * 128])
def test_correlation_data_comes_back_as_it_was(run, broker, witness, sent):
    run(broker, online=True)
    witness.ask(GOOD_ID, CorrelationData=sent)
    assert witness.answer().properties.CorrelationData == sent


@pytest.mark.parametrize("properties", [{}, {"CorrelationData": b""}, {"CorrelationData": b"x" * 129}])
def test_an_answer_may_do_without_correlation_data(run, broker, witness, properties):
    run(broker, online=True)
    witness.ask(GOOD_ID, **properties)
    assert not hasattr(witness.answer().properties, "CorrelationData")


def test_a_response_topic_is_not_followed(run, broker, witness):
    run(broker, online=True)
    witness.ask(GOOD_ID, ResponseTopic=STATUS + "somebody-else", CorrelationData=b"x")
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
    "the question holds a NUL byte": [b"\0", b'{"transaction_id": "\0"}', bytes(500)],
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
        for station in (0, -1, 1.5, 2**31, 1e300, "1", True, None, [1])
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
        for client in clients:  # until the backlog is full: then nobody answers a newcomer
            client.setblocking(False)
            client.connect_ex(address)
        validator = run(Broker(tmp_path, port=address[1]))
        wait_until(lambda: connections(validator, "02"), "it is connecting")
        assert stops_at_once(validator)
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


@pytest.mark.parametrize("build", ["validator"], indirect=True)
def test_a_broker_that_freezes_is_left_and_found_again(run, broker, witness):
    validator = run(broker, online=True)
    broker.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "no sign of life" in validator.said(), "it has noticed", 30)
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
    wait_until(lambda: "subscription refused: Not authorized" in validator.said(), "it is refused")
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


@pytest.mark.parametrize("build", ["validator"], indirect=True)
@pytest.mark.parametrize("there_is", ["a broker", "no broker", "no broker with TLS"])
def test_idle_it_does_nothing(run, broker, certificates, there_is):
    if there_is != "a broker":
        broker.stop()
    tls = {"MQTT_CA_FILE": f"{certificates}/ca.pem"} if "TLS" in there_is else {}
    validator = run(broker, online=there_is == "a broker", **tls)
    first_wait, first_tick = waits(validator), ticks(validator)
    wait_until(lambda: waits(validator) >= first_wait + 8, "it has slept eight times", 30)
    assert ticks(validator) - first_tick <= 5


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
        *(("VALIDATOR_ID", value) for value in ("a" * 65, "a/b", "+", "#", "a b", "é", "a\n")),
        *(("MQTT_CA_FILE", value) for value in ("/nowhere/ca.pem", "validator/nothing")),
        ("VALIDATOR_USERNAME", "x" * 65536),
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
