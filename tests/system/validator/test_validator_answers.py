"""The real equipment: what it is built from, what it answers, and what it refuses."""

import json
import os
import re
import subprocess
import time

from programs import ROOT, wait_until
from scripted import ANSWER, STATUS
from witness import GOOD_ID, a_newcomer_sees, both_builds, end, ids, ignored, make


def test_its_rules_hold():
    assert ", 0 failed" in make("test")


def test_the_verdict_depends_on_the_id_and_the_seed(run, broker, witness):
    first = run(broker, online=True)
    verdicts = witness.verdicts(ids(100))
    assert witness.verdicts(ids(100)) == verdicts
    end(first)
    second = run(broker, name="another", online=True)
    assert witness.verdicts(ids(100)) == verdicts
    end(second)
    run(broker, name="a-third", online=True, VALIDATOR_SEED="2")
    assert witness.verdicts(ids(100)) != verdicts


@both_builds
def test_an_answer_is_json_about_the_id_in_lower_case(run, broker, witness):
    run(broker, online=True, VALIDATOR_CONFIRM_RATE="1")
    witness.ask({"transaction_id": GOOD_ID.upper(), "station_id": 2147483647, "extra": [1, {"é": None}]})
    answer = witness.answer()
    verdict = json.loads(answer.payload)
    assert verdict.pop("reason")
    assert verdict == {"transaction_id": GOOD_ID, "status": "COMPLETED", "equipment": "validator"}
    assert answer.properties.ContentType == "application/json"
    assert answer.qos == 1
    assert not answer.retain


def test_correlation_data_comes_back_as_it_was_and_longer_ones_are_refused(run, broker, witness):
    validator = run(broker, online=True)
    sent = [GOOD_ID.encode(), b"", b"\0", bytes(range(256)), b"\xff" * 1024]
    for number, data in enumerate([*sent, b"x" * 1025]):
        witness.ask(ids(6)[number], CorrelationData=data)
    witness.ask(GOOD_ID)
    assert not hasattr(witness.answer(6).properties, "CorrelationData")
    assert [answer.properties.CorrelationData for answer in witness.answers[:5]] == sent
    assert "ignored, the correlation data is longer than 1024 bytes: {" in validator.said()


def test_a_response_topic_is_not_followed(run, broker, witness):
    run(broker, online=True)
    witness.ask(GOOD_ID, ResponseTopic=STATUS + "another", CorrelationData=b"x")
    assert witness.answer().topic == ANSWER
    assert {message.topic for message in witness.messages} == {ANSWER, STATUS + "validator"}


def test_two_share_the_work_and_answer_once(run, broker, witness):
    two = [run(broker, name=name, online=True, VALIDATOR_VERBOSE="1") for name in ("left", "right")]
    assert witness.verdicts(ids(200)).keys() == set(ids(200))
    assert len(witness.answers) == 200
    shares = [len(validator.output.read_text().splitlines()) for validator in two]
    assert sum(shares) == 200
    assert min(shares) > 0
    for name in ("left", "right"):
        a_newcomer_sees("online", broker, name)


def test_one_line_per_question_tells_id_station_and_verdict(run, broker, witness):
    validator = run(broker, online=True, VALIDATOR_VERBOSE="1", VALIDATOR_CONFIRM_RATE="0")
    witness.ask({"transaction_id": GOOD_ID, "station_id": 17})
    witness.answer()
    line = rf"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z {GOOD_ID} station 17 ERROR\n"
    assert re.fullmatch(line, validator.output.read_text())


GARBAGE = {
    b"x" * 1025: "the question is too long",
    b"\xff\xfe": "the question is not UTF-8",
    b"": "the question is not JSON",
    b"[" * 300 + b"]" * 300: "the question is not a JSON object",
    b'{"a": 1, "a": 1}': "the question has the same key twice",
    b'{"station_id": 1}': "transaction_id is missing",
    b'{"transaction_id": "%s%n"}': "transaction_id is not a UUID",
    json.dumps({"transaction_id": GOOD_ID, "station_id": 1.0}).encode(): "station_id is not a whole number",
}


def test_garbage_gets_a_line_and_the_next_question_an_answer(run, broker, witness):
    validator = run(broker, online=True)
    for payload in GARBAGE:
        witness.ask(payload)
    witness.ask(GOOD_ID)
    assert json.loads(witness.answer().payload)["transaction_id"] == GOOD_ID
    for sentence in GARBAGE.values():
        assert validator.said().count(f"ignored, {sentence}") == 1


def test_an_excerpt_is_short_and_harmless(run, broker, witness):
    validator = run(broker, online=True)
    rude = b"\x1b[2J\nvalidator: is online \xf0\x9f\x94\x8b \x7f"
    witness.ask(rude + b"a" * 900)
    witness.ask(GOOD_ID)
    witness.answer()
    tame = r"\x1B[2J\x0Avalidator: is online \xF0\x9F\x94\x8B \x7F" + "a" * (64 - len(rude)) + " ..."
    assert (
        validator.said().splitlines()[-1].endswith(f"Z validator: ignored, the question is not JSON: {tame}")
    )


def test_a_flood_of_garbage_is_counted_rather_than_told(run, broker, witness):
    """The same line comes once, others 20 times and then every three seconds, with the number before it."""
    validator = run(broker, online=True)
    for number in range(2000):
        witness.ask(b"garbage %d" % (number // 1000 * number))
    witness.ask(GOOD_ID)
    witness.answer()
    began = time.monotonic()

    def counted() -> bool:
        """The lines that were left out are counted with the next one, three seconds later."""
        witness.ask(b"garbage at %f" % time.monotonic())
        return ignored(validator) >= 2000

    wait_until(counted, "all of them are counted")
    assert len(validator.said().splitlines()) < 40 + (time.monotonic() - began)


def test_more_answers_than_can_wait_are_not_taken(run, broker, witness):
    validator = run(broker, online=True, VALIDATOR_DELAY_MS="3600000")
    for transaction in ids(16384 + 15):
        witness.ask(transaction)
    wait_until(lambda: ignored(validator) == 15, "the last 15 are ignored")
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
        assert validator.wait(30) == 0
        if not close:
            os.close(reader)
