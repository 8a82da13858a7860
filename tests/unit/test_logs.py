"""Log lines: one line for each event, at a bounded rate."""

import io
import json
import logging
import os
import re
from datetime import datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest

from kit import api, logs
from kit.logs import LINES, REQUEST, WARNINGS, Context, RateLimit, begin_request
from kit.settings import Settings


def formatter(style: str) -> logging.Formatter:
    """What the service formats its lines with."""
    options = dict(logs.configuration(Settings(log_format=style))["formatters"][style])
    return options.pop("()")(**options)


class Log(logging.Logger):
    """A logger with the filters and a formatter; `lines()` returns the lines since the last call."""

    def __init__(self, formatter=None):
        super().__init__("test")
        self.stream, self.bounded = io.StringIO(), RateLimit()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(formatter)
        handler.addFilter(Context())
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
    first = [f"number {number} is bad" for number in range(WARNINGS)]
    assert complain(log, WARNINGS) == first
    clock.now += 1
    assert complain(log, 1000) == first
    log.warning("something else")
    log.error("something worse")
    assert log.lines() == ["something else", "something worse"]
    for seconds in (1, 1, 3600):
        clock.now += seconds
        assert complain(log, 1000) == [f"{first[0]} (990 like this were left out)", *first[1:]]
    clock.now += 1
    assert complain(log, 1) == [f"{first[0]} (990 like this were left out)"]
    clock.now += 1
    assert complain(log, 1) == first[:1]


def test_what_a_stranger_writes_makes_no_other_message(clock):
    log = Log()
    for second in range(3):
        clock.now += 1
        for number in range(100):
            # gunicorn does the same: the client's bytes are part of the message.
            log.warning(f"invalid: {second}.{number} %s %d {{}}")
        assert len(log.lines()) == WARNINGS
    assert len(log.bounded.seen) == 1


def test_information_has_a_hundred_lines_a_second_and_what_someone_follows_has_all(clock):
    log = Log()
    for _ in range(2):
        for number in range(LINES * 2):
            log.debug("number %d is read", number)
            log.info("number %d is good", number)
        clock.now += 1
    lines = log.lines()
    assert [sum(word in line for line in lines) for word in ("read", "good")] == [LINES * 4, LINES * 2]
    assert f"number 0 is good ({LINES} like this were left out)" in lines


def test_a_text_line_has_one_time_in_utc_and_the_id_of_its_request():
    log = Log(formatter("text"))
    log.info("it is %s", "good")
    begin_request("7f3c")
    log.info("it is better")
    time = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    first, second = log.lines()
    assert re.fullmatch(f"{time} INFO test: it is good", first)
    assert re.fullmatch(f"{time} INFO test: it is better request=7f3c", second)


def test_a_json_line_is_always_one_line_with_the_fields_of_its_event():
    log = Log(formatter("json"))
    texts = "", "two\nlines", "\r\n\x1b[2J\0\x7f\x85\u2028", '"}\\', "🔋 ação", "%s %d {}", "x" * 100_000
    for text in (*texts, "a\ud800z"):
        log.info("%s", text)
        (line,) = log.lines()
        said = json.loads(line)
        assert list(said) == ["time", "level", "event", "message", "request_id", "logger", "pid"]
        assert (said["level"], said["event"], said["logger"]) == ("INFO", "test", "test")
        assert (said["message"], said["pid"], said["request_id"]) == (text, os.getpid(), None)
        assert datetime.fromisoformat(said["time"]).utcoffset() == timedelta(0)
    about = {"event": "transaction_asked", "transaction": uuid4()}
    log.info("%(transaction)s is %(what)r", about | {"what": "asked", "secret": "sesame"}, extra=about)
    (line,) = log.lines()
    said, key = json.loads(line), str(about["transaction"])
    assert (said["event"], said["transaction"]) == ("transaction_asked", key)
    assert said["message"] == f"{key} is 'asked'"
    assert "sesame" not in line
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it failed")
    (line,) = log.lines()
    assert (said := json.loads(line))["message"] == "it failed"
    assert re.fullmatch(r"Traceback \(most .*ValueError: two\nlines", said["traceback"], re.DOTALL)


@pytest.fixture
def ended(monkeypatch):
    """A function that returns the lines that a request with this status gets at this level."""

    def end(status: int, path: str = "/stations", level: int = logging.INFO, detail: str = "") -> list[dict]:
        log = Log(formatter("json"))
        log.setLevel(level)
        monkeypatch.setattr(api, "log", log)
        environ = {"PATH_INFO": path, "REMOTE_ADDR": "127.0.0.1", "REQUEST_METHOD": "GET"}
        environ |= {"QUERY_STRING": "token=sesame"}
        api.Api("").note(environ, api.Answer(status, detail=detail), 0.00204)
        return [json.loads(line) for line in log.lines()]

    return end


def test_a_request_that_failed_gets_one_line_that_says_why(ended):
    for status in (400, 404, 422, 500, 503):
        (line,) = ended(status, detail="it is away")
        assert (line["level"], line["event"], line["detail"]) == ("INFO", "request", "it is away")
        assert line["message"] == f"GET /stations from 127.0.0.1: {status} in 2.0 ms: it is away"
        fields = line["method"], line["path"], line["status"], line["client"], line["milliseconds"]
        assert fields == ("GET", "/stations", status, "127.0.0.1", 2.0)
        assert "sesame" not in str(line)
    (line,) = ended(404, "/\x9b2J" + "a" * 4000)  # it cannot write to a terminal or fill the log
    assert line["path"] == r"/\x9b2J" + "a" * 193


def test_other_requests_get_one_only_at_debug(ended):
    for status, path in ((200, "/stations"), (304, "/"), (503, "/readyz"), (503, "/healthz")):
        assert ended(status, path) == []
        (line,) = ended(status, path, logging.DEBUG)
        assert line["level"] == "DEBUG"
