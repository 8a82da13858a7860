"""Faults of the log, and of what a start needs: nothing stops, and what is away for a moment is waited for.

`make test` injects each fault once or twice, `make test-faults` as often as its table shows.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from mosquitto import AmendedBroker
from programs import ROOT, wait_until
from raw import talk
from replicas import metric
from trial import Trial, children, kill

# The log


NONBLOCK = "import os, sys; os.set_blocking(2, False); os.execv(sys.argv[1], sys.argv[1:])"


class Pipe:
    """A pipe of one page for a program's standard error. `reader` is the other end."""

    def __init__(self, run: Trial, *before: str):
        path = str(run.folder / "pipe")
        os.mkfifo(path)
        self.reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        command = run.service.command
        run.service.command = ["sh", "-c", 'exec "$@" 2>"$0"', path, *before, *command]
        fcntl.fcntl(self.reader, fcntl.F_SETPIPE_SZ, 4096)

    def read(self) -> str:
        """What is in the pipe now."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self.reader, 65_536).decode(errors="replace")
        return ""


@pytest.mark.parametrize("way", ["a pipe", "a pipe with O_NONBLOCK", "the reader has gone"])
def test_nobody_reads_the_log(trial, table, way):
    run = trial(LOG_LEVEL="DEBUG")
    pipe = Pipe(run, *([sys.executable, "-c", NONBLOCK] if "NONBLOCK" in way else []))
    run.start()
    run.note()
    if "gone" in way:
        os.close(pipe.reader)
    flood = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 999
    flood += b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for _ in range(3):
        assert talk(run.service.port, flood, half_close=False).count(b"HTTP/1.1 404") == 1000
    wait_until(lambda: metric(run.service, "energy2go_log_lines_dropped_total") > 100, "lines are counted")
    run.more()
    if "gone" not in way:
        said = []
        lost = lambda: said.append(pipe.read()) or "lines before it were lost" in "".join(said)  # noqa: E731
        wait_until(lost, "the log says how many were lost", 60)
    run.finish(f"nobody reads the log: {way}", table)
    assert set(run.told()) == {201}
    run.service.stop(seconds=6)


@pytest.mark.parametrize("way", ["the log is full", "no line can be made", "the log's lock is held"])
def test_nothing_keeps_a_process_that_must_end(way):
    ways = {
        "the log is full": "os.dup2(os.pipe()[1], 2); fcntl.fcntl(2, fcntl.F_SETPIPE_SZ, 4096)\n"
        "for _ in range(1000): logging.warning('x' * 100)",
        "no line can be made": "logging.LogRecord.__init__ = lambda *_, **__: time.sleep(1e99)",
        "the log's lock is held": "threading.Thread(target=logging.root.handlers[0].acquire).start()",
    }
    code = f"""if 1:
        import fcntl, logging, logging.config, os, threading, time
        from kit import logs
        from kit.settings import Settings
        logging.config.dictConfig({{"version": 1}} | logs.configuration(Settings()))
        exec({ways[way]!r})
        logs.end_the_process("a thread died", ValueError("why"))
    """
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 1
    assert time.monotonic() - began < 5
    if "line" in way:
        assert "a thread died" in ended.stderr


def test_the_certificates_are_away_when_a_worker_starts(tmp_path, programs, table, certificates):
    run, source = Trial(tmp_path, programs), certificates / "ours.pem"
    file, away = tmp_path / "ca.pem", tmp_path / "away.pem"
    shutil.copy(source, file)
    files = f"\ncertfile {certificates}/here.pem\nkeyfile {certificates}/here.key\n"
    run.broker.command = AmendedBroker(tmp_path, conf=files, port=run.broker.port).command
    run.service.environment["MQTT_CA_FILE"] = str(file)
    run.equipment.environment["MQTT_CA_FILE"] = str(source)
    run.start(keep_alive=False)
    for way in (lambda: run.service.send(signal.SIGHUP), lambda: kill([run.worker])):
        for absent in (lambda: file.rename(away), lambda: file.write_text("half of it")):
            run.note()
            absent()
            old = run.worker
            way()
            wait_until(lambda: children(run.service.pid)[-1:] not in ([], [old]), "another worker")  # noqa: B023
            wait_until(lambda: str(file) in broker_says(run.service), "/readyz names the file")
            # After a kill the database is checked first.
            post = partial(run.service.post, "/transactions", {"station_id": 1})
            wait_until(lambda: post().status == 201, "it stores without a broker")  # noqa: B023
            (away if away.exists() else Path(shutil.copy(source, away))).replace(file)
            run.ready(6)
            run.more()
    run.finish("MQTT_CA_FILE is away when a worker starts", table)
    assert run.service.running


def broker_says(service) -> str:
    """What /readyz says of the broker; empty without an answer."""
    with contextlib.suppress(OSError):
        return service.get("/readyz").json["broker"]
    return ""


def test_a_worker_cannot_start_for_the_moment(trial, table):
    run = trial(PYTHONPATH=f"{ROOT}:{ROOT}/tests/support")
    absent = run.folder / "absent"
    run.service.environment["ABSENT"] = str(absent)
    run.service.command[-1] = "moody:app"
    run.start()
    for way in (lambda: kill([run.worker]), lambda: run.service.send(signal.SIGHUP)):
        run.note()
        before = run.service.said().count("a worker cannot start")
        absent.touch()
        way()
        again = lambda: run.service.said().count("a worker cannot start") > before + 1  # noqa: E731, B023
        wait_until(again, "it is tried again")
        absent.unlink()
        run.more()
    run.finish("a worker cannot start for the moment", table)
    assert run.service.running
