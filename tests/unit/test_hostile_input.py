"""Whatever comes in, over MQTT or HTTP: nothing stops, everything is answered, no stored verdict changes."""

import json
import re
import socket
import time
import unicodedata
from collections import Counter
from typing import NamedTuple
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_ledger import Bench
from webtest import TestRequest

import models
import mqtt_listener
import storage
from mqtt_listener import STATUSES, VERDICTS, Listener
from peer import Peer
from programs import wait_until
from schemas import Status
from settings import Settings

KINDS = ("settled", "late", "duplicate", "contradiction", "unknown")  # of verdicts, as the ledger counts them
MESSAGES, AT_ONCE = 20_000, 80
MB = 1_000_000
PACKET = 65_536  # bytes: max_packet_size in mosquitto.conf
LINES, LINE = 10, 500  # log lines that one kind of message may have a second, and characters of one

# MQTT: what is sent


class Message(NamedTuple):
    """Something published on `topic`. In `template` {key} stands for the id of the transaction `who`, or of none.

    `means` is the verdict that this is, or a word for what else it is.
    """

    topic: str
    template: bytes
    who: int | None
    means: Status | str
    retained: bool = False

    def __repr__(self):
        return f"<{self.topic:.50} {self.template[:100]} {self.who} {self.means}>"

    def payload(self, keys: list[UUID]) -> bytes:
        key = UUID(int=0) if self.who is None else keys[self.who]
        words = {b"{key}": str(key), b"{KEY}": str(key).upper(), b"{hex}": key.hex, b"{none}": str(UUID(int=7))}
        payload = self.template
        for word, text in words.items():
            payload = payload.replace(word, text.encode())
        return payload


READABLE = [
    b'{"transaction_id": "{key}", "status": "{status}"}',
    b'\t\r\n{"status":"{status}","transaction_id":"{KEY}"} \n',
    b'{"transaction_id": "{hex}", "status": "{status}", "more": [null, {"status": "PENDING"}]}',
    b'{"\\u0073tatus": "{status}", "transaction_id": "{key}"}',
    b'{"status": "{other}", "transaction_id": "{none}", "transaction_id": "{key}", "status": "{status}"}',
    b'{"transaction_id": "{key}", "status": "{status}", "more": %s, "even more": 1e999}' % (b"9" * 5000),
    b'{"transaction_id": "{key}", "status": "{status}", "more": %s}' % (b"[" * 100 + b"]" * 100),
    b'{"transaction_id": "{key}", "status": "{status}", "more": "%s"}' % (b"x" * MB),
]
NO_STATUS = [
    "null",
    "true",
    "0",
    "-0",
    "1.5",
    "1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "[]",
    "{}",
    '["COMPLETED"]',
    '""',
    '"PENDING"',
    '"EXPIRED"',
    '"completed"',
    '"Error"',
    '"COMPLETED\\u0000"',
    '"COMPLETED\\n"',
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\ud83d\\udd0b"',
    "COMPLETED",
    "'ERROR'",
    '"\\n2026-01-01\\u001b[2J\\u0085\\u2028\\r"',
    '"\\u202eERROR"',
]
NO_ID = [
    "null",
    "true",
    "0",
    "-1",
    "1e999",
    "NaN",
    "Infinity",
    "[]",
    "{}",
    '["{key}"]',
    '{"id":"{key}"}',
    '""',
    '"{{key}}"',
    '"urn:uuid:{key}"',
    '"{key}0"',
    '"-{key}"',
    '"{key}\\u0000"',
    '"\\ud800"',
    '"019d31b4"',
    '"------------------------------------"',
    "{key}",
]
UNREADABLE = [
    *(b'{"transaction_id": "{key}", "status": %s}' % status.encode() for status in NO_STATUS),
    *(b'{"transaction_id": %s, "status": "COMPLETED"}' % key.encode() for key in NO_ID),
    b'{"transaction_id": %s, "status": "COMPLETED"}' % (b"9" * 10_000),
    b'{"transaction_id": "{key}"}',
    b'{"status": "COMPLETED"}',
    b'{"transaction_id": "{key}", "Status": "COMPLETED"}',
    b'{"transaction_id": "{key}", "status": "COMPLETED", "status": "EXPIRED"}',
    b'{"transaction_id": "{key}", "status": "COMPLETED",}',
    b'{"transaction_id": "{key}", "status": "COMPLETED"}{}',
    b'{"transaction_id": "{key}", "status": "COMPLETED"}\0',
    b'{"transaction_id": "{key}", "status": "COMPLETED", "more": NaN}',
    b'{"transaction_id": "{key}", "status": "COMPLETED", "more": "\\ud800"}',
    b'{"transaction_id": "{key}", "status": "COMPLETED", "more": %s}' % (b"[" * 100_000),
    b'\xef\xbb\xbf{"transaction_id": "{key}", "status": "COMPLETED"}',
    b'[{"transaction_id": "{key}", "status": "COMPLETED"}]',
    b'["{key}", "COMPLETED"]',
    b'"{\\"transaction_id\\": \\"{key}\\", \\"status\\": \\"COMPLETED\\"}"',
    b"transaction {key}",
    '{"transaction_id": "{key}", "status": "COMPLETED"}'.encode("utf-16"),
    b"",
    b"\0",
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'{"transaction_id":' * 100_000,
    b"x" * MB,
    b"\xff" * MB,
    b" " * MB,
    b"9" * MB,
]
NO_EQUIPMENT_STATUS = [
    "",
    "Online",
    "ONLINE",
    "online ",
    "online\n",
    "online\0",
    '"online"',
    "offline,online",
    "ónline",
]

whom = st.sampled_from([None, 0, 1, 2, 3])
VERDICTS_OF = {Status.COMPLETED: b"ERROR", Status.ERROR: b"COMPLETED"}  # each, and the other one
characters = st.characters(exclude_categories=["Cs"])  # no surrogates

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(characters, max_size=9),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(characters, max_size=5), some, max_size=3),
    max_leaves=3,
).map(lambda value: json.dumps(value).encode())


def spelled(template: bytes, status: Status) -> bytes:
    return template.replace(b"{status}", status.encode()).replace(b"{other}", VERDICTS_OF[status])


SPELLED = [(template, status) for template in READABLE[:4] * 4 + READABLE[4:] for status in VERDICTS_OF]
readable = st.tuples(st.sampled_from(SPELLED), whom).map(
    lambda drawn: Message(VERDICTS, spelled(*drawn[0]), drawn[1], drawn[0][1])
)
cut_off = st.tuples(st.sampled_from(READABLE[:5]), st.integers(1, 50)).map(
    lambda drawn: spelled(drawn[0], Status.ERROR).strip()[: -drawn[1]]
)
garbage = st.sampled_from(UNREADABLE) | st.sampled_from(UNREADABLE) | cut_off | st.binary(max_size=60) | json_values
unreadable = st.tuples(garbage, whom).map(lambda drawn: Message(VERDICTS, *drawn, "unreadable"))
names = st.text(characters, max_size=20).filter(lambda name: not set(name) & set("+#/\0")) | st.sampled_from(
    ["", " ", "validator-1", "$SYS", "%00", "\n\x1b[2J", "\u2028", "é" * 30_000, "a" * 65_000, "🔋" * 16_000]
)
SAID = [b"online", b"offline"] * 20 + [text.encode() for text in NO_EQUIPMENT_STATUS] + UNREADABLE


def equipment_says(drawn: tuple) -> Message:
    name, payload, retained = drawn
    means = "status" if payload in (b"online", b"offline") else "unreadable"
    return Message(STATUSES + name, payload, None, means, retained)


statuses = st.tuples(names, st.sampled_from(SAID) | st.binary(max_size=20), st.booleans()).map(equipment_says)
messages = readable | unreadable | statuses

# MQTT, in the process


@pytest.fixture
def bench(tmp_path):
    """A ledger that is called step by step, and a listener that looks for a broker where there is none."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        options = Settings(database_url=f"sqlite:///{tmp_path}/energy2go.db", mqtt_port=nobody.getsockname()[1])
        storage.bind(options.database_url)
        bench = Bench(options)
        bench.listener = Listener(bench.ledger)
        bench.listener.start(options)
        yield bench
        bench.listener.stop()
        bench.pool.shutdown()
        storage.close()


def counted(bench) -> Counter:
    """How many messages went into which counter until now."""
    verdicts = {kind: bench.ledger.counts[kind] for kind in KINDS}
    return Counter(verdicts | {"unreadable": bench.listener.counts["unreadable"]})


FOUR = [Status.PENDING, Status.PENDING, Status.EXPIRED, Status.COMPLETED]


def four(bench) -> list[UUID]:
    """The ids of new transactions that stand like these."""
    (expired,) = bench.store(1)
    bench.step(61)
    pending, other, completed = bench.store(3)
    bench.answer(completed)
    bench.step()
    return [pending, other, expired, completed]


def judged(batch: list[Message], stored: list[Status]) -> tuple[list[Status], Counter]:
    """What becomes of four transactions when these messages come, and what is counted."""
    stored, counts = list(stored), Counter()
    for message in batch:
        if not isinstance(message.means, Status):
            counts[message.means] += 1
        elif message.who is None:
            counts["unknown"] += 1
        elif stored[message.who] in (Status.PENDING, Status.EXPIRED):
            counts["settled" if stored[message.who] is Status.PENDING else "late"] += 1
            stored[message.who] = message.means
        else:
            counts["duplicate" if stored[message.who] is message.means else "contradiction"] += 1
    return stored, counts


def test_every_one_of_20_000_messages_is_acknowledged_and_counted_once(bench, caplog):
    settled, received = {}, 0

    @settings(max_examples=MESSAGES // AT_ONCE, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(messages, st.integers(0, 19)), min_size=AT_ONCE, max_size=AT_ONCE))
    def receive(batch):
        nonlocal received
        keys, before, acknowledged = four(bench), counted(bench), []
        for number, (message, commit) in enumerate(batch):
            payload, acknowledge = message.payload(keys), lambda number=number: acknowledged.append(number)
            bench.listener.receive(message.topic, payload, message.retained, acknowledge)
            if commit == 0:
                bench.step()
        bench.step()
        assert sorted(acknowledged) == list(range(AT_ONCE))
        stored, counts = judged([message for message, _ in batch], FOUR)
        assert counted(bench) - before == Counter({kind: counts[kind] for kind in (*KINDS, "unreadable")})
        assert [bench.status(key) for key in keys] == stored
        assert len(bench.listener.equipment) <= mqtt_listener.EQUIPMENTS
        settled.update({key: status for key, status in zip(keys, stored, strict=True) if status in VERDICTS_OF})
        received += AT_ONCE

    receive()
    assert received >= MESSAGES
    assert min(counted(bench)[kind] for kind in (*KINDS, "unreadable")) > 100
    assert set(bench.listener.equipment.values()) == {"online", "offline"}
    assert len(settled) > 2 * received / AT_ONCE
    for transaction in models.list_transactions(10 * MB):
        assert settled.get(transaction.id, transaction.status) is transaction.status
    said = [record.getMessage() for record in caplog.records if record.name == "mqtt_listener"]
    assert len(said) >= bench.listener.counts["unreadable"]
    assert [line for line in said if not line.isprintable() or len(line) > LINE] == []


def test_no_more_than_100_equipments_are_remembered(bench):
    for number in range(1000):
        bench.listener.receive(f"{STATUSES}{number}", b"online", False, lambda: None)
    for number in range(1000):
        bench.listener.receive(f"{STATUSES}{number}", b"offline", False, lambda: None)
    assert bench.listener.equipment == {str(number): "offline" for number in range(mqtt_listener.EQUIPMENTS)}


# MQTT, over the broker


class Flood(Peer):
    """An equipment that publishes without waiting; `answers` counts what the broker says to it, `lost` why it left."""

    def __init__(self, broker):
        self.answers, self.lost = Counter(), []
        super().__init__(broker)
        self.client.on_publish = lambda client, userdata, mid, code, properties: self.answers.update([str(code)])
        self.client.on_disconnect = lambda client, userdata, flags, code, properties: self.lost.append(str(code))

    def send(self, topic: str, payload: bytes, retained: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retained)

    def answered(self, number: int) -> None:
        wait_until(lambda: self.answers.total() >= number, f"the broker has taken {number}", 60)


def some(strategy, number: int) -> list:
    """So many examples, the same ones in every run."""
    found = []

    @settings(max_examples=number, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def find(example):
        found.append(example)

    find()
    return found


def fits(message: Message) -> bool:
    """The broker takes this: its packet is not too long, and its topic is one (MQTT 5, sections 1.5.4 and 4.7)."""
    short = len(message.topic.encode()) + len(message.template) < PACKET - 400
    return short and not {unicodedata.category(character) for character in message.topic} & {"Cc", "Cn"}


def filled(topic: str, payload: bytes, length: int) -> bytes:
    """The payload with so many blanks behind it that its packet has this length (MQTT 5, section 3.3)."""
    header = 1 + 3 + 2 + len(topic) + 2 + 1  # type, remaining length, topic, packet identifier, no properties
    return payload.ljust(length - header)


def verdict(key: str, status: str = "COMPLETED") -> bytes:
    return json.dumps({"transaction_id": key, "status": status}).encode()


def assert_bounded(said: str, seconds: float) -> None:
    """The service's log has few lines for what it was sent, and each is short, readable and its own."""
    lines = said.splitlines()
    assert [
        line for line in lines if not re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [a-z._]+: ", line)
    ] == []
    assert [line for line in lines if not line.isprintable() or len(line) > LINE] == []
    assert said.count("\n") == len(lines)
    for kind in ("ignored on", "Invalid request"):
        assert sum(kind in line for line in lines) <= LINES * (seconds + 2)


@pytest.fixture
def started(service):
    """The service with one station."""
    started = service(VALIDATION_RETRY="1")
    assert started.post("/stations", {"description": "Teste"}).json["id"] == 1
    return started


def create(service) -> str:
    return service.post("/transactions", {"station_id": 1}).json["id"]


def status(service, key: str) -> str:
    return service.get(f"/transactions/{key}").json["status"]


def test_hostile_messages_over_the_broker_leave_the_service_at_work(started, broker, equipment):
    began = time.monotonic()
    hostile = [message for message in some(messages, 1000) if fits(message)]
    assert len(hostile) > 500
    created = [create(started) for _ in range(4)]
    keys = [UUID(key) for key in created]
    largest, last = create(started), create(started)
    with Flood(broker) as flood:
        for message in hostile:
            flood.send(message.topic, message.payload(keys), message.retained)
        for topic in (VERDICTS, f"{STATUSES}other"):
            flood.send(topic, filled(topic, b"x", PACKET))
        flood.send(VERDICTS, filled(VERDICTS, verdict(largest), PACKET))
        flood.send(VERDICTS, verdict(last))
        flood.answered(len(hostile) + 4)
        assert flood.answers.keys() == {"Success"}
        assert flood.lost == []
    wait_until(lambda: status(started, last) == "COMPLETED", "everything before it was dealt with")
    assert status(started, largest) == "COMPLETED"
    stored, _ = judged(hostile, [Status.PENDING] * 4)
    assert [status(started, key) for key in created] == stored

    equipment()
    answer = started.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    assert answer.json["status"] in ("COMPLETED", "ERROR")
    assert len(started.get("/readyz").json["equipment"]) <= mqtt_listener.EQUIPMENTS
    # What was retained comes again.
    started.stop()
    started.start()
    wait_until(started.ready, "the service is ready")
    assert started.post("/transactions", {"station_id": 1}, Prefer="wait=20").json["status"] in ("COMPLETED", "ERROR")
    assert [status(started, key) for key in created] == stored
    assert_bounded(started.said(), time.monotonic() - began)


@pytest.mark.parametrize("topic", [VERDICTS, f"{STATUSES}validator"])
def test_the_broker_refuses_what_is_longer_than_its_limit(started, broker, topic):
    key, last = create(started), create(started)
    with Flood(broker) as flood:
        # Mosquitto does not count the three bytes that spell the length.
        flood.send(topic, filled(topic, verdict(key), PACKET + 4))
        wait_until(lambda: "Packet too large" in flood.lost, "the broker says so")
    with Flood(broker) as flood:
        flood.send(VERDICTS, verdict(last))
    wait_until(lambda: status(started, last) == "COMPLETED", "an answer goes through")
    assert status(started, key) == "PENDING"
    assert started.get("/readyz").json["equipment"] == {}


# HTTP, in the process

METHODS = ["GET", "GET", "POST", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "BREW"]
latin = st.characters(codec="latin-1", exclude_categories=["Cc"])  # what a server lets through in a header
ids = st.sampled_from(["1", "2", "01", "0", "-1", "1.0", "2147483647", "2147483648", "1e3", "{key}", "{none}", "", "é"])
segments = (
    ids
    | st.sampled_from(["stations", "transactions", "swagger", "static", "..", ".", "start.js", "page.js"])
    | st.text(latin)
)
paths = (
    st.sampled_from(["", "stations", "transactions", "healthz", "readyz", "openapi.json", "swagger"]).map("/{}".format)
    | ids.map("/stations/{}".format)
    | ids.map("/transactions/{}".format)
    | segments.map("/swagger/{}".format)
    | segments.map("/static/{}".format)
    | st.lists(segments, max_size=4).map("/".join).map("/{}".format)
    | st.text(latin, max_size=20).map("/{}".format)
)
ROUTES = [
    "POST /stations",
    "PUT /stations/1",
    "PATCH /stations/1",
    "DELETE /stations/2",
    "DELETE /stations/1",
    "POST /transactions",
    "POST /transactions/",
    "GET /stations",
    "GET /stations/1",
    "GET /transactions",
    "GET /transactions/{key}",
]
asked = st.sampled_from(ROUTES) | st.tuples(st.sampled_from(METHODS), paths).map(" ".join)
fields = st.sampled_from(["limit", "after", "status", "station_id", "x", "", "\xff"])
values = ids | st.sampled_from(["PENDING", "200", "%", "%ff", "%00", "+", "null"]) | st.text(latin, max_size=9)
queries = st.lists(st.tuples(fields, values).map("=".join), max_size=3).map("&".join) | st.text(latin, max_size=30)
HEADERS = [
    "ACCEPT",
    "ACCEPT_ENCODING",
    "AUTHORIZATION",
    "CONNECTION",
    "COOKIE",
    "CONTENT_ENCODING",
    "EXPECT",
    "FORWARDED",
    "HOST",
    "IF_MATCH",
    "IF_MODIFIED_SINCE",
    "IF_NONE_MATCH",
    "IDEMPOTENCY_KEY",
    "ORIGIN",
    "PREFER",
    "RANGE",
    "TE",
    "TRANSFER_ENCODING",
    "UPGRADE",
    "X_FORWARDED_FOR",
    "X_FORWARDED_HOST",
    "X_FORWARDED_PROTO",
    "X_HTTP_METHOD_OVERRIDE",
    "X_SCRIPT_NAME",
]
headers = st.dictionaries(
    st.sampled_from(HEADERS).map("HTTP_{}".format),
    st.text(latin, max_size=300).filter(lambda text: "wait" not in text)  # nobody answers, so that it would wait
    | st.sampled_from(["wait=0", "wait=-1", "bytes=0-9", "bytes=9-", "bytes=x", "chunked", "gzip", "*", "k", "\xff"]),
    max_size=4,
)
types = st.sampled_from(
    ["application/json", "application/json", "application/json; charset=x", "", "text/plain", "\xff"]
)
bodies = (
    st.sampled_from([{"description": "x"}, {"station_id": 1}, {"station_id": 2}, {}, []])
    .map(json.dumps)
    .map(str.encode)
    | st.builds(
        lambda name, value: b'{"%s": %s}' % (name.encode(), value),
        st.sampled_from(["description", "station_id", "id", "status", ""]),
        json_values,
    )
    | json_values
    | st.binary(max_size=60)
    | st.sampled_from(
        [b"", b"[" * 60_000, b'{"description":' * 4000, b" " * 65_537, b"9" * MB, b'{"station_id": 1e999}']
    )
)


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_every_one_of_1_000_requests_is_answered_with_json(api):
    wait_until(lambda: api.get("/healthz", expect_errors=True).status_int == 200, "the tables are there")
    for _ in range(2):
        api.post_json("/stations", {"description": "Teste"}, status=201)
    key = api.post_json("/transactions", {"station_id": 1}, status=201).json["id"]
    answered = Counter()

    @settings(max_examples=1000, suppress_health_check=list(HealthCheck))
    @given(asked, queries, headers, types, bodies)
    def ask(route, query, headers, content_type, body):
        request = TestRequest.blank("/", headers={}, method="POST", body=body)
        method, _, path = route.partition(" ")
        path = path.replace("{key}", key).replace("{none}", str(UUID(int=7)))
        request.environ |= headers | {"REQUEST_METHOD": method, "QUERY_STRING": query, "CONTENT_TYPE": content_type}
        request.environ["PATH_INFO"] = path
        answer = api.do_request(request, expect_errors=True)
        empty = answer.body == b""  # which also reads it to its end
        status, given = answer.status_int, answer.headers.get("Content-Type", "").partition(";")[0]
        answered[status] += 1
        assert status in {200, 201, 204, 206, 302, 304, 400, 404, 405, 409, 413, 415, 416, 422, 503}
        assert status != 503 or path.startswith("/readyz")
        if status in (204, 302, 304):
            assert empty
        elif status >= 400:
            assert given == "application/problem+json"
            assert method == "HEAD" or answer.json["status"] == status
        elif not re.match(r"/*$|/(swagger|static)\b", path):
            assert given == "application/json"
            assert method == "HEAD" or answer.json is not None

    ask()
    assert answered.keys() >= {200, 201, 400, 404, 405, 415, 422}
    assert api.get(f"/transactions/{key}").json["status"] == "PENDING"
    assert api.post_json("/stations", {"description": "still there"}).status_int == 201
