"""What SECURITY.md promises, against the real programs: who may do what, what nobody gets to see, what TLS refuses."""

import contextlib
import http.client
import json
import re
import socket
import ssl
import subprocess
import threading
import time
import uuid
from pathlib import Path

import pytest

from programs import ACCOUNTS, ROOT, Broker, Equipment, Program, Service, free_port, wait_until

QUESTIONS, VERDICTS, STATUS = "EQUIPMENT/VALIDATION", "EQUIPMENT/VALIDATION/RESPONSE", "EQUIPMENT/STATUS/validator"
SECRETS = {"MQTT_PASSWORD": "Kolibri-71", "VALIDATOR_PASSWORD": "Zaunkoenig-72", "API_TOKEN": "Mauersegler-73"}
TOKEN = SECRETS["API_TOKEN"]
KEY = "Rotkehlchen-74"


class AmendedBroker(Broker):
    """Mosquitto with the project's own files and, as an operator would have them there, more lines at their ends."""

    def __init__(self, folder: Path, conf: str = "", acl: str = "", **options):
        super().__init__(folder, **options)
        self.files = folder / "amended"
        (self.files / "deploy").mkdir(parents=True, exist_ok=True)
        for name, more in (("deploy/mosquitto.sh", ""), ("mosquitto.conf", conf), ("deploy/mosquitto.acl", acl)):
            (self.files / name).write_text((ROOT / name).read_text() + more)
        self.command[self.command.index("deploy/mosquitto.sh")] = str(self.files / "deploy/mosquitto.sh")


class Subscriber(Program):
    """A running `mosquitto_sub`, subscribed when `start` returns."""

    def __init__(self, folder: Path, broker: Broker, account: str, *options: str):
        self.name = f"{account}-{len(list(folder.glob('*.out')))}"
        # Into a file it would write in blocks.
        command = ["stdbuf", "-oL", *client("sub", broker, account), "-d", "-v", "-q", "1", *options]
        super().__init__(self.name, command, folder, {})

    def start(self):
        super().start()
        wait_until(lambda: "Subscribed" in self.output.read_text(), f"{self.name} is subscribed")
        return self

    def received(self) -> list[tuple[str, str]]:
        """Topic and payload of each message, in the order of their arrival."""
        return re.findall(r"^(\S*/\S*) (.*)$", self.output.read_text(errors="replace"), re.MULTILINE)

    def received_before_the_last(self) -> set[str]:
        """The topics of what arrived, once the message arrived that was published after all others."""
        wait_until(lambda: any(payload == "last" for _, payload in self.received()), "the last message")
        return {topic for topic, payload in self.received() if payload != "last"}


def client(kind: str, broker: Broker, account: str = "", version: str = "mqttv5", **instead: str) -> list[str]:
    """The start of a command line of `mosquitto_pub` or `mosquitto_sub` with one of the two accounts, or with none."""
    command = [f"mosquitto_{kind}", "-V", version, "-h", "127.0.0.1", "-p", str(broker.port)]
    if account:
        known = broker.environment_of_clients | instead
        command += ["-u", known[f"{account}_USERNAME"], "-P", known[f"{account}_PASSWORD"]]
    return command


def publish(broker: Broker, account: str, topic: str, payload: str = "x", *options: str) -> str:
    """Publish and wait for the broker's answer; returns what `mosquitto_pub` complains about."""
    command = [*client("pub", broker, account), "-q", "1", "-t", topic, *(options or ("-m", payload))]
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stderr


@pytest.fixture
def run(tmp_path, programs):
    """A function that starts a program, which is ended after the test: `run(Service, broker, API_TOKEN="x")`."""

    def run(kind: type, *arguments, **options):
        programs.append(kind(tmp_path, *arguments, **options))
        started = programs[-1].start()
        if kind is Service:
            wait_until(lambda: alive(started), "the service is alive")
        return started

    return run


def alive(service: Service) -> bool:
    """True once it has its database; the broker may be away."""
    with contextlib.suppress(OSError):
        return service.get("/healthz").status == 200
    return False


def online(service: Service) -> bool:
    """True once the whole job can be done."""
    return service.ready() and service.get("/readyz").json["equipment"].get("validator") == "online"


def settles(service: Service, **headers) -> bool:
    """True if a transaction gets its verdict: through the service, the broker, the equipment, and back."""
    assert service.post("/stations", {"description": "Teste"}, **headers).status == 201
    answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=20", **headers)
    return answer.status == 201 and answer.json["status"] in ("COMPLETED", "ERROR")


# The broker's two accounts

OTHER = {"MQTT": "VALIDATOR", "VALIDATOR": "MQTT"}
READS = {"MQTT": {VERDICTS, STATUS}, "VALIDATOR": {QUESTIONS}}
WRITES = {"MQTT": {QUESTIONS}, "VALIDATOR": {VERDICTS, STATUS}}
TOPICS = [
    *(QUESTIONS, VERDICTS, STATUS),
    *("EQUIPMENT/STATUS", f"{STATUS}/x", f"{QUESTIONS}/", f"{VERDICTS}/x", "EQUIPMENT/x"),
    *(f"/{QUESTIONS}", QUESTIONS.lower(), "other/topic", "$other/topic", "$SYS/broker/version", "$CONTROL/x"),
]
FILTERS = [
    *("#", "$SYS/#", "$other/#", "$CONTROL/#", "/#", "EQUIPMENT/#", "+/+", "+/+/+", QUESTIONS, VERDICTS, STATUS),
    *(f"$share/{group}/{topic}" for group in ("validators", "energy2go", "mine") for topic in (QUESTIONS, VERDICTS)),
    *("$share/mine/#", "$share/mine/$SYS/#"),
]


@pytest.mark.parametrize("version", ["mqttv31", "mqttv311", "mqttv5"])
def test_nobody_gets_in_without_the_right_password(run, broker, tmp_path, version):
    reader = run(Subscriber, broker, "MQTT", "-t", VERDICTS)
    strangers = [
        client("pub", broker, version=version),
        client("pub", broker, "VALIDATOR", version, VALIDATOR_PASSWORD="wrong"),
        client("pub", broker, "VALIDATOR", version, VALIDATOR_PASSWORD=""),
        client("pub", broker, "VALIDATOR", version, VALIDATOR_PASSWORD=ACCOUNTS["MQTT_PASSWORD"]),
        client("pub", broker, "VALIDATOR", version, VALIDATOR_PASSWORD=ACCOUNTS["VALIDATOR_PASSWORD"].upper()),
        client("pub", broker, "VALIDATOR", version, VALIDATOR_USERNAME="nobody"),
        client("pub", broker, "VALIDATOR", version, VALIDATOR_USERNAME=""),
    ]
    for stranger in strangers:
        command = [*stranger, "-q", "1", "-t", VERDICTS, "-m", "stranger"]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert refused.returncode != 0, command
        assert re.search("not authori[sz]ed", refused.stderr, re.IGNORECASE), command
    assert publish(broker, "VALIDATOR", VERDICTS, "last") == ""
    assert reader.received_before_the_last() == set()


@pytest.mark.parametrize("account", ["MQTT", "VALIDATOR"])
def test_an_account_reads_nothing_but_its_topics(run, account):
    # Mosquitto grants every subscription and delivers nothing; so somebody has to be able to publish everywhere.
    broker = run(AmendedBroker, acl=f"\nuser {OTHER[account]}_USERNAME\ntopic readwrite #\ntopic readwrite $other/#\n")
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
    broker = run(AmendedBroker, acl=f"\nuser {OTHER[account]}_USERNAME\ntopic readwrite #\ntopic readwrite $other/#\n")
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
        run(Subscriber, broker, "VALIDATOR", "-t", "x", *will(topic)) for topic in (QUESTIONS, "other/topic", STATUS)
    ]
    for dying in wills:
        dying.kill()
    wait_until(lambda: (STATUS, "will") in reader.received(), "the will that is allowed")
    assert publish(broker, "VALIDATOR", VERDICTS, "last") == ""
    assert reader.received_before_the_last() == {STATUS}


def will(topic: str) -> list[str]:
    return ["--will-topic", topic, "--will-payload", "will", "--will-qos", "1"]


def test_what_is_too_large_is_refused_and_the_service_survives(run, broker, tmp_path):
    limit = int(re.search(r"^max_packet_size (\d+)$", (ROOT / "mosquitto.conf").read_text(), re.MULTILINE)[1])
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
            subprocess.run(command, capture_output=True, timeout=20)
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
    stranger = socket.create_connection(("127.0.0.1", broker.port), timeout=15)
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
        (folder / name).write_text("left by somebody careless")
        (folder / name).chmod(0o666)
    broker = run(Broker)
    assert sorted(path.name for path in folder.iterdir()) == ["mosquitto.acl", "mosquitto.conf", "passwords"]
    for path in folder.iterdir():
        assert oct(path.stat().st_mode & 0o777) == "0o600"
        assert not any(password in path.read_text() for name, password in ACCOUNTS.items() if "PASSWORD" in name)
    for name in ("MQTT", "VALIDATOR"):
        assert re.search(rf"^{ACCOUNTS[f'{name}_USERNAME']}:\$[67]\$", (folder / "passwords").read_text(), re.MULTILINE)
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
    secrets = {name: uuid.uuid4().hex for name in SECRETS}  # no other process has ever heard of them
    broker = run(Broker, **secrets)
    run(Equipment, broker)
    service = run(Service, broker, **secrets)
    wait_until(lambda: online(service), "all are online")
    lines = command_lines()
    assert b"mosquitto" in lines
    assert b"gunicorn" in lines
    for secret in secrets.values():
        assert secret.encode() not in lines


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """A folder with the certificates of two authorities, of brokers here and elsewhere, and of a stranger."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "openssl.cnf").write_text("[req]\ndistinguished_name = name\n[name]\n")

    def certificate(name: str, *options: str) -> None:
        command = ["openssl", "req", "-x509", "-config", "openssl.cnf", "-newkey", "ec", "-nodes", "-days", "2"]
        command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        made = subprocess.run([*command, "-subj", f"/CN={name}", *options], cwd=folder, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr

    for authority in ("ours", "theirs"):
        certificate(
            authority, "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"
        )
    for name, authority, address in (
        ("here", "ours", "DNS:localhost,IP:127.0.0.1"),
        ("elsewhere", "ours", "DNS:broker.example,IP:192.0.2.1"),
        ("stranger", "theirs", "DNS:localhost,IP:127.0.0.1"),
    ):
        signed = ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-addext", f"subjectAltName={address}"]
        certificate(name, *signed)
    return folder


@pytest.fixture
def tls_broker(tmp_path, programs, certificates):
    """A function that makes a broker with one of the certificates; to be started."""

    def make(name: str, **options) -> Broker:
        lines = f"\ncertfile {certificates}/{name}.pem\nkeyfile {certificates}/{name}.key\n"
        programs.append(AmendedBroker(tmp_path, conf=lines, **options))
        return programs[-1]

    return make


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_both_programs_speak_tls(run, tls_broker, certificates, host):
    broker = tls_broker("here").start()
    options = {"MQTT_HOST": host, "MQTT_CA_FILE": str(certificates / "ours.pem")}
    run(Equipment, broker, **options)
    service = run(Service, broker, **options)
    wait_until(lambda: online(service), "all are online")
    assert settles(service)
    context = ssl.create_default_context(cafile=certificates / "ours.pem")
    with (
        socket.create_connection(("127.0.0.1", broker.port), 10) as plain,
        context.wrap_socket(plain, server_hostname=host) as wire,
    ):
        assert wire.version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.parametrize(
    ("wrong", "words"), [("stranger", "certificate verify failed"), ("elsewhere", "not valid for '127.0.0.1'")]
)
def test_a_wrong_certificate_is_refused_in_words_until_the_right_one_is_there(
    run, tls_broker, certificates, wrong, words
):
    ca = {"MQTT_CA_FILE": str(certificates / "ours.pem")}
    broker = tls_broker(wrong).start()
    equipment = run(Equipment, broker, **ca)
    service = run(Service, broker, VALIDATION_TIMEOUT="1", **ca)
    wait_until(lambda: words in service.get("/readyz").json["broker"], "the service says why")
    wait_until(lambda: re.search("certificate verif|verification failed", equipment.said()), "the equipment says why")
    assert f"not connected to 127.0.0.1:{broker.port}" in equipment.said()
    assert service.get("/readyz").status == 503
    service.post("/stations", {"description": "Teste"})
    waiting = service.post("/transactions", {"station_id": 1})
    assert (waiting.status, waiting.json["status"]) == (201, "PENDING")
    broker.stop()
    tls_broker("here", port=broker.port).start()
    wait_until(lambda: online(service), "all are online")
    wait_until(lambda: service.get(waiting.headers["Location"]).json["status"] in ("COMPLETED", "ERROR"), "the verdict")
    assert equipment.running
    assert service.said().count("Booting worker") == 1


def test_no_password_is_told_to_a_broker_with_a_wrong_certificate(run, certificates):
    heard = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "stranger.pem", certificates / "stranger.key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            with contextlib.suppress(OSError):
                while True:
                    plain, _ = server.accept()
                    with plain, contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as wire:
                        heard.append(wire.recv(4096))

        threading.Thread(target=listen, daemon=True).start()
        impostor = Broker(certificates, port=server.getsockname()[1], **SECRETS)
        ca = {"MQTT_CA_FILE": str(certificates / "ours.pem")}
        equipment = run(Equipment, impostor, **ca)
        service = run(Service, impostor, **ca)
        wait_until(lambda: "verify failed" in service.get("/readyz").json["broker"], "the service refuses it")
        wait_until(lambda: "verif" in equipment.said(), "the equipment refuses it")
        server.shutdown(socket.SHUT_RDWR)
    assert b"".join(heard) == b""


@pytest.mark.parametrize("encrypted", [True, False])
def test_plain_and_tls_do_not_meet_and_nobody_crashes(run, tls_broker, certificates, encrypted):
    broker = tls_broker("here").start() if encrypted else run(Broker)
    ca = {} if encrypted else {"MQTT_CA_FILE": str(certificates / "ours.pem")}
    equipment = run(Equipment, broker, **ca)
    service = run(Service, broker, **ca)
    wait_until(
        lambda: service.get("/readyz").json["broker"] != f"not connected to 127.0.0.1:{broker.port} yet", "words"
    )
    unready = service.get("/readyz")
    assert unready.status == 503
    assert f"127.0.0.1:{broker.port}" in unready.json["broker"]
    assert re.search("does not answer|cannot be reached", unready.json["broker"])
    wait_until(lambda: f"not connected to 127.0.0.1:{broker.port}" in equipment.said(), "the equipment says it")
    assert alive(service)
    assert service.post("/stations", {"description": "Teste"}).status == 201
    assert service.post("/transactions", {"station_id": 1}).json["status"] == "PENDING"
    assert equipment.running
    assert service.said().count("Booting worker") == 1


# API_TOKEN

API = ("/stations", "/transactions", "/metrics")


def routes(service: Service) -> list[tuple[str, str, bool]]:
    """Each method and path that the service has, with ids filled in, and whether it is part of the API."""
    key = "019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57"
    filled = {"{name}": "start.js", "/stations/{id}": "/stations/1", "/transactions/{id}": f"/transactions/{key}"}
    found = []
    for path, operations in service.get("/openapi.json").json["paths"].items():
        concrete = path
        for placeholder, value in filled.items():
            concrete = concrete.replace(placeholder, value)
        found += [(method.upper(), concrete, path.startswith(API)) for method in operations]
    assert len(found) > 10
    return found


def ask(
    service: Service, method: str, path: str, headers: list[tuple[str, str]] = (), body: bytes = b""
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request with exactly these headers, and no redirection followed."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    with contextlib.closing(connection):
        connection.putrequest(method, path)
        for name, value in headers:
            connection.putheader(name, value.encode("latin1"))
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


WRONG = [
    *(None, "", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer={TOKEN}", f"Bearer, {TOKEN}", f"Token {TOKEN}"),
    *(f"Bearer {TOKEN[:length]}" for length in (1, 8, len(TOKEN) - 1)),
    *(f"Bearer {TOKEN}{more}" for more in ("x", TOKEN, f" {TOKEN}", ", x", "\xa0", "=")),
    *(f"Bearer {token}" for token in (TOKEN.lower(), TOKEN.upper(), TOKEN.swapcase(), TOKEN[::-1], TOKEN[1:])),
    *(f"Bearer {token}" for token in (TOKEN.replace("e", "\xe9"), "\xe2\x82\xac", "\xff" * 14, "*", "null", "'' or 1")),
]


def test_every_route_of_the_api_wants_the_token_and_nothing_like_it(run, broker):
    service = run(Service, broker, API_TOKEN=TOKEN)
    body = b'{"description": "Teste"}'
    for method, path, guarded in routes(service):
        for given in WRONG:
            headers = [("Content-Type", "application/json"), *([("Authorization", given)] if given is not None else [])]
            status, answered, text = ask(service, method, path, headers, body)
            if guarded:
                assert (status, answered["WWW-Authenticate"]) == (401, "Bearer"), (method, path, given)
                assert TOKEN.encode() not in text
            else:
                assert status not in (401, 403), (method, path, given)
    assert service.get("/stations", Authorization=f"Bearer {TOKEN}").json == {"items": [], "next": None}
    assert ask(service, "GET", f"/stations?access_token={TOKEN}")[0] == 401
    twice = [("Authorization", "Bearer x"), ("Authorization", f"Bearer {TOKEN}")]
    assert ask(service, "GET", "/stations", twice)[0] in (400, 401)


def test_with_the_token_the_job_is_done(run, broker):
    run(Equipment, broker)
    service = run(Service, broker, API_TOKEN=TOKEN)
    wait_until(lambda: online(service), "all are online")
    assert settles(service, Authorization=f"Bearer {TOKEN}")


@pytest.mark.parametrize("token", ["Schlüssel-€", "voilà"])  # the last byte of the second is a blank in Latin-1
def test_a_token_may_hold_more_than_ascii(run, broker, token):
    service = run(Service, broker, API_TOKEN=token)
    as_utf_8 = token.encode().decode("latin1")
    for given, expected in ((as_utf_8, 200), (as_utf_8[:-1], 401), (as_utf_8 + "\xa0", 401), ("voil\xe0", 401)):
        assert ask(service, "GET", "/stations", [("Authorization", f"Bearer {given}")])[0] == expected


def test_swagger_ui_can_offer_to_authorize(run, broker):
    document = run(Service, broker, API_TOKEN=TOKEN).get("/openapi.json").json
    ((name, scheme),) = document["components"]["securitySchemes"].items()
    assert scheme == {"type": "http", "scheme": "bearer"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation.get("security") == ([{name: []}] if path.startswith(API) else None)
    assert TOKEN not in json.dumps(document)


@pytest.mark.parametrize(
    ("host", "token", "warned"), [("0.0.0.0", "", True), ("0.0.0.0", TOKEN, False), ("127.0.0.1", "", False)]
)
def test_to_be_open_to_everybody_is_warned_of(run, broker, host, token, warned):
    port = free_port()
    service = run(Service, broker, port=port, BIND=f"{host}:{port}", API_TOKEN=token)
    wait_until(lambda: "ready at" in service.said(), "it is ready")
    warnings = [line for line in service.said().splitlines() if "WARNING gunicorn" in line]
    assert len(warnings) == warned
    assert all("API_TOKEN" in line and f"BIND={host}:{port}" in line for line in warnings)


# What answers say

FAILING = """
from app import app, storage

@app.get("/fails", token=False)
def fails():
    "Raise."
    raise RuntimeError(f"{__file__} with a secret of /etc")

@app.get("/sql", token=False)
def sql():
    "Ask for what the database does not have."
    storage.proxy.execute_sql("SELECT secret FROM nowhere")
"""


@pytest.fixture
def failing(tmp_path, programs, broker):
    """A function that starts the service with two routes more, which fail."""

    def start(**options) -> Service:
        (tmp_path / "failing.py").write_text(FAILING)
        service = Service(tmp_path, broker, PYTHONPATH=f"{tmp_path}:{ROOT}", **options)
        service.command[-1] = "failing:app"
        programs.append(service.start())
        wait_until(lambda: alive(service), "the service is alive")
        return service

    return start


JSON = [("Content-Type", "application/json")]
ANSWERS = [
    ("GET", "/", [], b"", 200),
    ("GET", "/swagger/", [], b"", 200),
    ("GET", "/swagger/swagger-ui-bundle.js", [], b"", 200),
    ("GET", "/openapi.json", [], b"", 200),
    ("GET", "/healthz", [], b"", 200),
    ("GET", "/stations", [], b"", 200),
    ("HEAD", "/stations", [], b"", 200),
    ("POST", "/stations", JSON, b'{"description": "<script>alert(1)</script>"}', 201),
    ("GET", "/stations/1", [], b"", 200),
    ("POST", "/stations", JSON, b"{", 400),
    ("GET", "/<script>alert(1)</script>", [], b"", 404),
    ("GET", "/%ff", [], b"", 404),
    ("GET", "/stations/2", [], b"", 404),
    ("GET", "/swagger/..%2fapp.py", [], b"", 404),
    ("DELETE", "/stations", [], b"", 405),
    ("BREW", "/stations", [], b"", 405),
    ("POST", "/stations", JSON, b'{"description": "' + b"x" * 70000 + b'"}', 413),
    ("POST", "/stations", [("Content-Type", "text/plain")], b'{"description": "x"}', 415),
    ("POST", "/stations", JSON, b'{"description": 1}', 422),
    ("GET", "/fails", [], b"", 500),
    ("GET", "/sql", [], b"", 503),
]


def test_every_answer_tells_browsers_to_run_and_frame_nothing_foreign(failing):
    service = failing()
    for method, path, headers, body, expected in ANSWERS:
        status, answered, _ = ask(service, method, path, headers, body)
        assert status == expected, (method, path)
        assert answered["X-Content-Type-Options"] == "nosniff", (method, path)
        assert answered["Referrer-Policy"] == "no-referrer", (method, path)
        rules = dict(rule.strip().split(" ", 1) for rule in answered["Content-Security-Policy"].split(";"))
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
        assert "unsafe" not in answered["Content-Security-Policy"]
        # What somebody wrote comes back as JSON, never as a page.
        assert "html" not in answered["Content-Type"] or path in ("/", "/swagger/")


def test_every_error_is_a_problem_and_shows_no_internals(failing):
    service = failing()
    for method, path, headers, body, expected in ANSWERS:
        status, answered, text = ask(service, method, path, headers, body)
        if expected >= 400:
            problem = json.loads(text)
            assert (status, problem["status"]) == (expected, expected)
            assert answered["Content-Type"] == "application/problem+json"
            assert problem.keys() == {"type", "title", "status", "detail"}
            assert not re.search(rf'Traceback|File "|{ROOT}|site-packages|SELECT|nowhere|secret', text.decode())
    wait_until(lambda: "a secret of /etc" in service.said(), "the log says why")


# What logs say


@pytest.mark.parametrize("style", ["text", "json"])
def test_no_log_holds_a_secret(run, failing, broker, tmp_path, style):
    broker.stop()
    broker = run(Broker, port=broker.port, **SECRETS)
    secret = {name: value for name, value in SECRETS.items() if name != "VALIDATOR_PASSWORD"}
    equipment = run(Equipment, broker, VALIDATOR_VERBOSE="1", VALIDATOR_PASSWORD=SECRETS["VALIDATOR_PASSWORD"])
    service = failing(LOG_LEVEL="DEBUG", LOG_FORMAT=style, **secret)
    wait_until(lambda: online(service), "all are online")
    authorized = {"Authorization": f"Bearer {TOKEN}"}
    assert settles(service, Idempotency_Key=KEY, **authorized)
    assert service.post("/transactions", {"station_id": 2}, Idempotency_Key=KEY, **authorized).status == 422
    assert service.post("/transactions", {"station_id": 1}, Idempotency_Key=KEY).status == 401
    assert service.get("/fails", **authorized).status == 500
    assert service.get("/sql", **authorized).status == 503
    for header in (f"Authorization Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}\0", f"Expect: {TOKEN}"):
        with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
            connection.sendall(f"GET /stations HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 4")
    # A broker that refuses both passwords.
    broker.stop()
    refusing = run(Broker, port=broker.port, MQTT_PASSWORD="another", VALIDATOR_PASSWORD="one more")
    wait_until(lambda: "Not authorized" in service.get("/readyz").json["broker"], "the service is refused")
    wait_until(lambda: "Not authorized" in equipment.said(), "the equipment is refused")
    for program in (service, equipment, refusing):
        program.stop()
        written = program.said() + program.output.read_text()
        assert written, program.name
        for hidden in [*SECRETS.values(), KEY, "another", "one more"]:
            assert hidden not in written, program.name
    for expected in ("GET /fails", "RuntimeError", "Invalid HTTP Header", "refuses the connection"):
        assert expected in service.said()
    assert "station 1 " in equipment.output.read_text()
    if style == "json":
        for line in service.said().splitlines():
            record = json.loads(line)
            assert all(isinstance(record[name], str) for name in ("time", "level", "logger", "message"))


def test_whoever_sends_nonsense_does_not_fill_the_log(run, broker):
    service = run(Service, broker)
    begin = time.monotonic()
    for number in range(300):
        with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
            connection.sendall(b"GET /%d\x01 HTTP/1.1\r\n%d: %d\r\n\r\n" % (number, number, number))
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    seconds = time.monotonic() - begin
    lines = [line for line in service.said().splitlines() if "Invalid" in line]
    assert 10 <= len(lines) <= 10 * (seconds + 2)
    assert max(map(len, lines)) < 200


# Slow clients


def test_slow_clients_fewer_than_threads_hold_up_nobody(run, broker):
    service = run(Service, broker, THREADS="4")
    body = b'{"description": "slow"}'
    head = b"POST /stations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    hurry, answers = threading.Event(), []

    def drip(at_once: bytes, slowly: bytes) -> None:
        with socket.create_connection(("127.0.0.1", service.port), 60) as connection:
            connection.sendall(at_once)
            for byte in slowly[:-1]:
                connection.sendall(bytes([byte]))
                hurry.wait(0.2)
            hurry.wait(60)
            connection.sendall(slowly[-1:])
            answers.append(connection.recv(100)[:12])

    slow = [(b"", head + body), (b"P", head[1:] + body), (head, body)]
    threads = [threading.Thread(target=drip, args=request, daemon=True) for request in slow]
    for thread in threads:
        thread.start()
    for number in range(1, 101):
        assert service.request("POST", "/stations", {"description": "quick"}, timeout=10).json["id"] == number
        assert service.request("GET", "/healthz", timeout=10).status == 200
    assert answers == []
    hurry.set()
    for thread in threads:
        thread.join(30)
    assert answers == [b"HTTP/1.1 201"] * 3


# The page that promises it

PAGE = (ROOT / "docs/SECURITY.md").read_text()


def test_every_test_that_the_page_names_exists():
    for named in re.findall(r"`(tests/[^`]*)`", PAGE):
        file, marks, name = named.partition("::")
        tests = re.findall(r"^def (test_\w+)\(", (ROOT / file).read_text(), re.MULTILINE)
        assert name in tests if marks else tests, named


def test_every_test_here_is_named_on_the_page():
    for name in re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.MULTILINE):
        assert f"`tests/system/test_security.py::{name}`" in PAGE
