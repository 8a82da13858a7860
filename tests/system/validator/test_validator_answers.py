"""The real equipment: what it answers, and what it refuses."""

import json
import os
import re
import subprocess
import time

from programs import ROOT, wait_until
from scripted import ANSWER, PUBLISH, QUESTION, STATUS
from witness import GOOD_ID, answered, answers, ask, ids, make, online


def test_its_rules_hold():
    assert ", 0 failed" in make("test")


def test_the_verdict_depends_on_the_id_and_the_seed(meets):
    verdicts = []
    for name, seed in (("one", "1"), ("another", "1"), ("a third", "2")):
        _, _, connection = meets(name=name, options={"VALIDATOR_SEED": seed})
        ask(connection, ids(100) * 2)
        wait_until(lambda one=connection: len(answers(one)) == 200, "all are answered")
        verdicts.append(answers(connection))
    first, second, third = verdicts
    assert first[:100] == first[100:] == second[:100]
    assert first != third
    assert {answer["status"] for answer in first} == {"COMPLETED", "ERROR"}


def test_an_answer_is_json_about_the_id_in_lower_case(meets):
    validator, _, connection = meets(options={"VALIDATOR_CONFIRM_RATE": "0"})
    question = {"transaction_id": GOOD_ID.upper(), "station_id": 2147483647, "extra": [1, {"é": None}]}
    connection.publish(QUESTION, json.dumps(question).encode())
    (verdict,) = wait_until(lambda: answers(connection), "it answers")
    assert verdict.pop("reason")
    assert verdict == {"transaction_id": GOOD_ID, "status": "ERROR", "equipment": "validator"}
    (answer,) = connection.published(ANSWER)
    assert (answer.qos, answer.retain, answer.properties) == (1, False, {"ContentType": "application/json"})
    line = rf"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z {GOOD_ID} station 2147483647 ERROR\n"
    assert re.fullmatch(line, validator.output.read_text())


def test_correlation_data_comes_back_as_it_was_and_longer_ones_are_refused(meets):
    validator, _, connection = meets()
    sent = [GOOD_ID.encode(), b"", b"\0", bytes(range(256)), b"\xff" * 1024]
    for number, data in enumerate([*sent, b"x" * 1025]):
        ask(connection, [ids(6)[number]], CorrelationData=data)
    ask(connection, [GOOD_ID])
    wait_until(lambda: answered(connection) == [*ids(5), GOOD_ID], "all but one are answered")
    found = [answer.properties.get("CorrelationData") for answer in connection.published(ANSWER)]
    assert found == [*(data.hex() for data in sent), None]
    assert "ignored, the correlation data is longer than 1024 bytes: {" in validator.said()


def test_a_response_topic_is_not_followed(meets):
    _, _, connection = meets()
    ask(connection, [GOOD_ID], ResponseTopic=STATUS + "another", CorrelationData=b"x")
    wait_until(lambda: answered(connection), "it answers")
    assert {packet.topic for packet in connection.received(PUBLISH)} == {ANSWER, STATUS + "validator"}


def question(key: str = f'"{GOOD_ID}"', station: str = "1") -> bytes:
    return b'{"transaction_id":%s,"station_id":%s}' % (key.encode(), station.encode())


WHOLE = [
    question().center(1024),
    b'{"station_id":1,"x":[{}],"transaction_id":"%s","y":"\xc2\xa2 \\u00e9"}' % GOOD_ID.encode(),
    question(f'"\\u0030{GOOD_ID[1:]}"', "2147483647"),
    question(f'"{GOOD_ID.upper()}"'),
]
GARBAGE = {
    "the question is too long": [question().center(1025), b"[" * 60_000],
    "the question is not UTF-8": [b"\xff\xfe", b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xe2\x82'],
    "the question is not JSON": [
        *(b"", b"transaction 7", b"[" * 990, question() + b"x", question() + b"\0", question()[:-1]),
        *(question(f'"{GOOD_ID}\\u0000"'), b"\xef\xbb\xbf" + question()),
    ],
    "the question has the same key twice": [b'{"a":1,"a":1}', b'[{"x":[{"y":1,"\\u0079":1}]}]'],
    "the question has a number that is too large": [question(station="1e999"), b"9223372036854775808"],
    "the question is not a JSON object": [b"17", b"[" * 300 + b"]" * 300],
    "transaction_id is missing": [b'{"x":%s}' % question()],
    "transaction_id is not a string": [question("null")],
    "transaction_id is not a UUID": [
        *(question('"%s%n"'), question(f'" {GOOD_ID}"'), question(f'"{GOOD_ID}0"')),
        *(question(f'"{GOOD_ID[:-1]}g"'), question('"01890a5d-ac96-774b-bcceb-302099a8057"')),
        question(f'"{GOOD_ID[:-2]}é"'),
    ],
    "station_id is missing": [b'{"transaction_id":"%s"}' % GOOD_ID.encode()],
    "station_id is not a whole number from 1 to 2147483647": [
        question(station=station) for station in ("0", "-1", "1.0", '"1"', "2147483648", "4294967297")
    ],
}


def test_garbage_gets_a_line_and_the_next_question_an_answer(meets):
    bad = [(payload, sentence) for sentence in GARBAGE for payload in GARBAGE[sentence]]
    # Blanks make each excerpt another line, since the same one comes once.
    payloads = [(b" " * number + payload, sentence) for number, (payload, sentence) in enumerate(bad)]
    for name, some in (("one", payloads[:18]), ("another", payloads[18:])):  # 20 lines may come at once
        validator, _, connection = meets(name=name)
        for payload in [*(payload for payload, _ in some), *WHOLE]:
            connection.publish(QUESTION, payload)
        wait_until(lambda one=connection: answered(one) == [GOOD_ID] * len(WHOLE), "it answers")
        said = [line.partition("ignored, ")[2] for line in validator.said().splitlines()[1:]]
        assert [line.partition(":")[0] for line in said] == [sentence for _, sentence in some]


def test_an_excerpt_is_short_and_harmless(meets):
    validator, _, connection = meets()
    rude = b"\x1b[2J\nvalidator: is online \xf0\x9f\x94\x8b \x7f"
    connection.publish(QUESTION, b"")
    connection.publish(QUESTION, rude + b"a" * 900)
    tame = r"\x1B[2J\x0Avalidator: is online \xF0\x9F\x94\x8B \x7F" + "a" * (64 - len(rude)) + " ...\n"
    line = f"Z validator: ignored, the question is not JSON: {tame}"
    wait_until(lambda: validator.said().endswith(line), "it says so")


def ignored(validator) -> int:
    """How many payloads it ignored, by its lines and by the number of lines that were left out."""
    left_out = sum(map(int, re.findall(r"\((\d+) lines before this one", validator.said())))
    return left_out + validator.said().count("ignored, ")


def test_a_flood_of_garbage_is_counted_rather_than_told(meets):
    """The same line comes once, others 20 times and then every three seconds, with the number before it."""
    validator, _, connection = meets()
    for number in range(2000):
        connection.publish(QUESTION, b"garbage %d" % (number // 1000 * number))
    ask(connection, [GOOD_ID])
    wait_until(lambda: answered(connection), "it answers")
    began = time.monotonic()

    def counted() -> bool:
        """The lines that were left out are counted with the next one, three seconds later."""
        connection.publish(QUESTION, b"garbage at %f" % time.monotonic())
        return ignored(validator) >= 2000

    wait_until(counted, "all of them are counted")
    assert len(validator.said().splitlines()) < 40 + (time.monotonic() - began)


def test_more_answers_than_can_wait_are_not_taken(meets):
    validator, _, connection = meets(options={"VALIDATOR_DELAY_MS": "3600000", "VALIDATOR_VERBOSE": "0"})
    ask(connection, ids(16384 + 15))
    wait_until(lambda: ignored(validator) == 15, "the last 15 are ignored")
    assert "ignored, too many answers are waiting: {" in validator.said()
    assert answers(connection) == []


def test_the_end_of_its_reader_is_not_its_own(build, scripted, programs):
    """Neither a pipe that is closed nor one that is full stops it."""
    for close in (True, False):
        broker = scripted()
        environment = broker.environment_of_clients | {"VALIDATOR_VERBOSE": "1", "VALIDATOR_ID": "validator"}
        reader, writer = os.pipe()
        validator = subprocess.Popen([ROOT / build], env=environment, stdout=writer, stderr=writer)
        programs.append(validator)
        os.close(writer)
        connection = online(broker)
        if close:
            os.close(reader)
        ask(connection, ids(1500))
        wait_until(lambda one=connection: len(answers(one)) == 1500, "all are answered")
        validator.terminate()
        assert validator.wait(30) == 0
        if not close:
            os.close(reader)
