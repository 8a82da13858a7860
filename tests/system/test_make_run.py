"""`make run` starts the programs in order, says when they are ready, and stops them quietly."""

import fcntl
import json
import os
import re
import shutil
import signal
import tempfile
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from desk import Desk, copy_tree
from programs import ROOT, Program, listening, wait_until

TIME = re.compile(r"\d\d:\d\d:\d\d")
TROUBLE = re.compile("warn|error|traceback|exception|refused|make", re.IGNORECASE)


@pytest.fixture
def folder():
    """A copy of the project's folder. Another user may not enter pytest's folders."""
    parent = Path(tempfile.mkdtemp(prefix="energy2go-run-"))
    parent.chmod(0o755)
    yield copy_tree(parent / "two words")
    shutil.rmtree(parent)


@pytest.fixture
def run(folder, programs):
    """A function that starts `make run` in that folder."""

    def start(**options) -> Desk:
        programs.append(Desk(folder, **options))
        return programs[-1]

    return start


def settle(desk: Desk) -> str:
    """Create a station and a transaction, and return its status."""
    for path, body in (("/stations", {"description": "Teste"}), ("/transactions", {"station_id": 1})):
        headers = {"Content-Type": "application/json", "Prefer": "wait=20"}
        url = f"http://127.0.0.1:{desk.port}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            created = json.load(answer)
    return created["status"]


def test_it_starts_in_order_says_ready_once_all_are_and_ctrl_c_stops_it_quietly(run):
    desk = run()
    desk.wait_for("ready")
    assert desk.status("/readyz") == 200
    assert settle(desk) in ("COMPLETED", "ERROR")
    desk.wait_for("/transactions")
    begin = desk.said()
    before, _, after = begin.partition("ready")
    assert after.startswith(f" at http://127.0.0.1:{desk.port} ")
    assert after.count("curl --json") == 2
    assert "refused" not in before
    lines = begin.splitlines()
    assert [line for line in lines if len(TIME.findall(line)) != 1] == []
    assert {line.split()[0] for line in lines} <= {"broker", "validator", "web"}
    desk.interrupt()
    assert desk.wait() == 0
    end = desk.said().removeprefix(begin)
    assert not TROUBLE.search(end), end
    assert [line for line in end.splitlines() if len(TIME.findall(line)) != 1] == []


BEYOND_ASCII = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "MQTT_PASSWORD": "Schlüssel-€",
    "VALIDATOR_PASSWORD": "Zaunkönig",
}


@pytest.mark.parametrize("variables", [{"MQTT_HOST": "::1", "LOG_FORMAT": "json"}, BEYOND_ASCII])
def test_it_needs_no_terminal(run, variables):
    desk = run(terminal=False, **variables)
    desk.wait_for("ready at")
    assert settle(desk) in ("COMPLETED", "ERROR")
    assert [line for line in desk.said().splitlines() if len(TIME.findall(line)) != 1] == []
    desk.interrupt()
    assert desk.wait() == -signal.SIGINT  # make got the signal too, and always ends with it
    assert "make: ***" not in desk.said()


def test_ctrl_c_while_it_starts_is_quiet_too(run):
    desk = run()
    desk.wait_for("web ")
    desk.interrupt()
    assert desk.wait() == 0
    assert not re.search("traceback|make", desk.said(), re.IGNORECASE), desk.said()


@pytest.mark.parametrize(("program", "name"), [("validator", "validator"), ("gunicorn", "web")])
def test_if_one_dies_it_says_which_and_why_and_stops_the_others(run, program, name):
    desk = run()
    desk.wait_for("ready")
    os.kill(desk.pid(program), signal.SIGKILL)
    assert desk.wait() == 2
    sentence = f"{name} was killed by signal 9 (Killed); stopping the others\n"
    _, found, end = desk.said().partition(sentence)
    assert found
    if name != "web":
        assert "Shutting down: Master" in end
    assert "Traceback" not in end


def test_if_one_refuses_to_start_its_reason_comes_first(run):
    desk = run(VALIDATOR_CONFIRM_RATE="7")
    assert desk.wait() == 2
    reason, ended = "VALIDATOR_CONFIRM_RATE must", "validator ended with exit code 2 (see its last lines)"
    assert desk.said().index(reason) < desk.said().index(ended)
    assert "ready" not in desk.said()


def free(lock: Path) -> bool:
    """True if no process holds this lock."""
    with suppress(BlockingIOError), lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def test_only_one_runs_in_a_folder_until_the_kernel_frees_the_lock(run, folder):
    first = run()
    first.wait_for("ready")
    second = run()
    assert second.wait() == 2
    in_use = f"var/ is in use: another `make run` (process {first.launcher}) has not ended. Stop it first.\n"
    assert second.said().startswith(in_use)
    assert first.status("/readyz") == 200
    os.kill(first.launcher, signal.SIGKILL)
    wait_until(lambda: free(folder / "var/lock"), "what is left of the first has ended")
    third = run()
    third.wait_for("ready")
    third.interrupt()
    assert third.wait() == 0


def test_a_folder_that_cannot_be_written_gets_a_sentence(run, folder):
    (folder / "var").symlink_to("/proc")
    desk = run()
    assert desk.wait() == 2
    assert desk.said().startswith("var/lock cannot be opened: ")


def test_closing_the_terminal_stops_everything(run):
    desk = run()
    desk.wait_for("ready")
    launcher, port = desk.launcher, desk.port
    desk.hang_up()
    desk.process.wait(60)
    wait_until(lambda: not os.path.exists(f"/proc/{launcher}"), "it has ended")
    assert not listening(port)


def test_it_stops_though_its_terminal_is_frozen(run):
    desk = run()
    desk.wait_for("ready at")
    os.write(desk.end, b"\x13")  # Ctrl-S
    os.kill(desk.launcher, signal.SIGTERM)
    assert desk.wait() == 0


def test_with_nohup_it_outlives_its_terminal(run, folder):
    desk = run(nohup=True)
    said = folder / "nohup.out"
    wait_until(lambda: said.exists() and "ready at" in said.read_text(), "it is ready")
    launcher = desk.launcher
    desk.hang_up()
    desk.process.wait(60)
    assert desk.status("/readyz") == 200
    os.kill(launcher, signal.SIGTERM)
    wait_until(lambda: not os.path.exists(f"/proc/{launcher}"), "it has ended")
    assert not listening(desk.port)


def test_a_signal_stops_it_like_ctrl_c(run):
    desk = run()
    desk.wait_for("ready")
    os.kill(desk.launcher, signal.SIGHUP)
    assert desk.wait() == 0
    assert desk.said().index("stopping") < desk.said().index("Shutting down: Master")


def test_the_broker_writes_times_like_the_others(broker, tmp_path):
    (tmp_path / "twin").mkdir()
    twin = Program("twin", broker.command, tmp_path / "twin", broker.environment).start()
    assert twin.process.wait(60) != 0
    error = r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ: Error: Address already in use$"
    assert re.search(error, twin.said(), re.MULTILINE)


def test_the_first_line_with_the_word_comes_when_equipment_is_there(service, equipment):
    started = service()
    assert started.get("/readyz").json["equipment"] == {}
    assert "ready" not in started.said()
    equipment()
    wait_until(lambda: "ready at" in started.said(), "it says so")
    assert started.get("/readyz").status == 200


def test_the_names_in_the_procfile():
    names = re.findall("^[a-z]+", (ROOT / "Procfile").read_text(), re.MULTILINE)
    assert names == ["broker", "validator", "web"]
