"""Log lines: one line for each event, at a bounded rate."""

import io
import json
import logging
from types import SimpleNamespace

import pytest

from kit import logs
from kit.logs import BURST, JsonLines, RateLimit, TextLines
from kit.trace import REQUEST, begin


class Log(logging.Logger):
    """A logger with the filter and a formatter; `lines()` returns the lines since the last call."""

    def __init__(self, formatter=None):
        super().__init__("test")
        self.stream, self.bounded = io.StringIO(), RateLimit()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(formatter)
        handler.addFilter(self.bounded)
        self.addHandler(handler)

    def lines(self) -> list[str]:
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        assert text == "" or text.endswith("\n")
        return text.split("\n")[:-1]


@pytest.fixture(autouse=True)
def no_request():
    """Other tests may have left the id of their last request."""
    REQUEST.set("")


@pytest.fixture
def clock(monkeypatch):
    """The module's clock, in seconds."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def complain(log, times: int, text: str = "number %d is bad") -> list[str]:
    for number in range(times):
        log.warning(text, number)
    return log.lines()


def test_a_message_has_ten_lines_a_second_and_the_next_one_says_how_many_were_left_out(clock):
    log = Log()
    assert complain(log, 1000) == [f"number {number} is bad" for number in range(BURST)]
    clock.now += 1
    assert complain(log, 2) == ["number 0 is bad (990 like this were left out)", "number 1 is bad"]


def test_what_fits_is_let_through_as_it_is(clock):
    log = Log()
    for _ in range(3):
        assert complain(log, BURST) == [f"number {number} is bad" for number in range(BURST)]
        clock.now += 1


def test_second_after_second_no_more_than_that_comes_out(clock):
    log = Log()
    complain(log, 1000)
    for _ in range(20):
        clock.now += 1
        said = complain(log, 1000)
        assert len(said) == BURST
        assert [line for line in said if "left out" in line] == [
            "number 0 is bad (990 like this were left out)"
        ]
    clock.now += 3600
    assert complain(log, 1) == ["number 0 is bad (990 like this were left out)"]
    clock.now += 1
    assert complain(log, 1) == ["number 0 is bad"]


def test_what_a_stranger_writes_makes_no_other_message(clock):
    log = Log()
    for second in range(10):
        clock.now += 1
        for number in range(100):
            # gunicorn does the same: the client's bytes are part of the message.
            log.warning(f"invalid: {second}.{number} %s %d {{}}")
        assert len(log.lines()) == BURST
    assert len(log.bounded.seen) == 1


def test_one_message_does_not_use_up_the_lines_of_another(clock):
    log = Log()
    complain(log, 1000)
    log.warning("something else")
    log.error("something worse")
    assert log.lines() == ["something else", "something worse"]


def test_information_is_not_bounded(clock):
    log = Log()
    for number in range(1000):
        log.info("number %d is good", number)
    assert len(log.lines()) == 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "two\nlines",
        "\r\n\x1b[2J\0\x7f\x85\u2028",
        '"}\\',
        "🔋 ação",
        "%s %d {}",
        "x" * 100_000,
        "a\ud800z",
    ],
    ids=["nothing", "two lines", "controls", "quotes", "beyond ASCII", "formats", "much", "a surrogate"],
)
def test_a_json_line_is_always_one_line(text):
    log = Log(JsonLines())
    log.info("%s", text)
    (line,) = log.lines()
    said = json.loads(line)
    assert said.keys() == {"time", "level", "logger", "event", "message"}
    assert (said["level"], said["logger"], said["event"]) == ("INFO", "test", "%s")
    assert said["message"] == text


def test_a_json_line_has_the_fields_that_its_event_names_and_no_others():
    log = Log(JsonLines())
    log.info("%(who)s said %(what)r", {"who": "it", "what": "two\nlines", "secret": "sesame"})
    (line,) = log.lines()
    said = json.loads(line)
    assert said["event"] == "%(who)s said %(what)r"
    assert said["message"] == "it said 'two\\nlines'"
    assert said["fields"] == {"who": "it", "what": "two\nlines"}


def test_a_traceback_is_part_of_its_json_line():
    log = Log(JsonLines())
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it failed")
    (line,) = log.lines()
    said = json.loads(line)
    assert said["message"] == "it failed"
    assert said["traceback"].startswith("Traceback (most recent call last):\n")
    assert "ValueError: two\nlines" in said["traceback"]


def test_a_line_has_the_id_of_the_request_that_caused_it():
    text, lines = Log(TextLines("%(message)s")), Log(JsonLines())
    begin("abc")
    for log in (text, lines):
        log.info("it")
        log.info("job", extra={"request": "other"})
    assert text.lines() == ["it request=abc", "job request=other"]
    assert [json.loads(line)["request"] for line in lines.lines()] == ["abc", "other"]
    REQUEST.set("")
    text.info("it")
    assert text.lines() == ["it"]
