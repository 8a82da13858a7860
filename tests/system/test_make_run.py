"""`make run` starts the programs in order, says when they are ready, and stops them quietly."""

import fcntl
import os
import re
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from desk import Desk, copy_tree
from programs import listening, wait_until

TIME = re.compile(r"\d\d:\d\d:\d\d")
TROUBLE = re.compile("warn|error|traceback|exception|refused|make", re.IGNORECASE)
UNUSUAL = {"LC_ALL": "C", "PYTHONUTF8": "0", "MQTT_HOST": "::1", "LOG_FORMAT": "json"}
UNUSUAL |= {"MQTT_PASSWORD": "Schlüssel-€", "VALIDATOR_PASSWORD": "Zaunkönig"}


@pytest.fixture(scope="module")
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
    station = desk.web.post("/stations", {"description": "Teste"}).json["id"]
    return desk.web.post("/transactions", {"station_id": station}, Prefer="wait=20").json["status"]


def untimed(text: str) -> list[str]:
    """The lines that don't have exactly one time."""
    return [line for line in text.splitlines() if len(TIME.findall(line)) != 1]


def test_it_starts_in_order_says_ready_once_all_are_and_ctrl_c_stops_it_quietly(run):
    desk = run()
    desk.wait_for("ready")
    assert desk.web.get("/readyz").status == 200
    assert settle(desk) in ("COMPLETED", "ERROR")
    desk.wait_for("/transactions")
    begin = desk.said()
    before, _, after = begin.partition("ready")
    assert after.startswith(f" at http://127.0.0.1:{desk.port} ")
    assert after.count("curl --json") == 2
    assert "refused" not in before
    assert {line.split()[0] for line in begin.splitlines()} <= {"broker", "validator", "web"}
    desk.interrupt()
    assert desk.wait() == 0
    end = desk.said().removeprefix(begin)
    assert not TROUBLE.search(end), end
    assert untimed(desk.said()) == []


def test_it_needs_no_terminal(run):
    desk = run(terminal=False, **UNUSUAL)
    desk.wait_for("ready at")
    assert settle(desk) in ("COMPLETED", "ERROR")
    assert untimed(desk.said()) == []
    desk.interrupt()
    assert desk.wait() == -signal.SIGINT  # make got the signal too, and always ends with it
    assert "make: ***" not in desk.said()


def test_if_one_dies_it_says_which_and_why_and_stops_the_others(run):
    desk = run()
    desk.wait_for("ready")
    os.kill(desk.pid("validator"), signal.SIGKILL)
    assert desk.wait() == 2
    _, found, end = desk.said().partition("validator was killed by signal 9 (Killed); stopping the others\n")
    assert found
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
    assert first.web.get("/readyz").status == 200
    os.kill(first.launcher, signal.SIGKILL)
    wait_until(lambda: free(folder / "var/lock"), "what is left of the first has ended")


def test_closing_the_terminal_stops_everything_unless_it_has_nohup(run, folder):
    first, said = run(), folder / "nohup.out"
    first.wait_for("ready")
    launcher = first.launcher
    first.hang_up()
    first.process.wait(60)
    wait_until(lambda: not os.path.exists(f"/proc/{launcher}"), "it has ended")
    assert not listening(first.port)
    second = run(nohup=True)
    wait_until(lambda: said.exists() and "ready at" in said.read_text(), "it is ready")
    launcher = second.launcher
    second.hang_up()
    second.process.wait(60)
    assert second.web.get("/readyz").status == 200
    os.kill(launcher, signal.SIGTERM)
    wait_until(lambda: not os.path.exists(f"/proc/{launcher}"), "it has ended")
    assert not listening(second.port)
