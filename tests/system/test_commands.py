"""Each command in the documents works as it stands, and prints what is shown."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from desk import copy_tree
from documents import commands
from programs import COVERAGE, ROOT, free_port, listening, wait_until

ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
ENDLESS = re.compile(r"make run|curl -N|gunicorn|nginx")

STATION = """curl -s --json '{"description": "Teste"}' http://127.0.0.1:8000/stations"""
LIST = "curl -s http://127.0.0.1:8000/transactions"
TRANSACTION = f"""{LIST} --json '{{"station_id": 1}}' -H 'Prefer: wait=20'"""


def comparable(text: str) -> str:
    """The text without what differs between runs: ids, times, verdicts and ports."""
    text = re.sub(r"(?m)^id: \d+-[0-9a-f]{32}$", "id: CURSOR", text)
    text = ID.sub("ID", re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", text))
    text = re.sub(r"\d{8}T\d{6}Z", "STAMP", re.sub(r"[\d.]+ ms", "N ms", text))
    text = re.sub(r'"(reason|equipment)":(null|"[^"]*")', r'"\1":…', text)
    text = re.sub("COMPLETED|ERROR|refused|confirmed", "VERDICT", text).strip()
    return "\n".join(sorted(text.splitlines())) if " | " in text else text  # programs print at the same time


class Shell:
    """bash in a copy of the project's folder. What it starts there has ports of its own."""

    def __init__(self, **environment: str):
        self.parent = Path(tempfile.mkdtemp(prefix="energy2go-shell-"))
        self.parent.chmod(0o755)  # nginx may run as another user
        self.folder = copy_tree(self.parent / "energy2go")
        self.ports = {shown: free_port() for shown in (8000, 8080, 18830)}
        self.ids: dict[str, str] = {}  # ours, by those in the documents
        # What each command that does not end should print, and its log.
        self.started: list[tuple[str, Path]] = []
        self.url = f"http://127.0.0.1:{self.ports[8000]}"
        own = {"BIND": self.url.removeprefix("http://"), "MQTT_PORT": str(self.ports[18830])}
        own |= {"PATH": f"{os.environ['PATH']}:/usr/sbin", "HOME": str(self.folder)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        options = {"cwd": self.folder, "env": COVERAGE | own | environment, "start_new_session": True}
        self.process = subprocess.Popen(["bash"], text=True, **pipes, **options)

    def real(self, text: str) -> str:
        """A text of the documents with our ids and ports."""
        for shown, real in self.ids.items():
            text = text.replace(shown, real)
        return re.sub(
            r"(?<=127\.0\.0\.1:)\d+", lambda port: str(self.ports.get(int(port[0]), port[0])), text
        )

    def type(self, command: str) -> str:
        """Type a command, and return what it prints. It must succeed."""
        command = self.real(command)
        self.process.stdin.write(f"{command}\nstatus=$?; echo; echo END $status\n")
        self.process.stdin.flush()
        printed = ""
        while not (line := self.process.stdout.readline()).startswith("END"):
            assert line, f"{command}\n{printed}"
            printed += line
        assert line == "END 0\n", f"{command}\n{printed}"
        return printed.removesuffix("\n")

    def start(self, command: str, shown: str = "") -> None:
        """Type a command that does not end, and let it go on."""
        log = self.folder / f"{len(self.started)}.log"
        log.touch()
        self.started.append((shown, log))
        self.type(f"{{ {command}; }} > {log} 2>&1 &")
        if "make run" in command:
            wait_until(lambda: "ready at" in log.read_text(), "it is ready", 60)

    def play(self, page: str, section: str, *texts: str) -> None:
        """Type the commands of a section, or those with one of these texts, and compare what they print."""
        played = [one for one in commands() if (one.page, one.section) == (page, section)]
        for command in played:
            if command.docker or not any(text in command.text for text in texts or [""]):
                continue
            if ENDLESS.search(command.text):
                self.start(command.text, command.shown)
            elif ".venv/bin/pytest" in command.text:
                self.type(f"{command.text} --collect-only")  # it fails if there is no such test
            else:
                self.check(command.text, command.shown)
        assert played

    def check(self, command: str, shown: str) -> None:
        """Type a command, and compare what it prints with what is shown. A GET may need a moment."""
        printed = self.type(command)
        if "http://" in command and not re.search("--json|-X", command):
            wait_until(lambda: comparable(self.type(command)) == comparable(shown) or not shown, shown)
        else:
            assert comparable(printed) == comparable(shown) or not shown
        self.ids |= dict(zip(ID.findall(shown), ID.findall(printed), strict=False))

    def finish(self) -> None:
        """Each command that does not end prints what is shown, perhaps among other lines; press Ctrl-C."""
        for shown, log in self.started:
            for line in comparable(shown).partition("^C")[0].splitlines():
                text = re.escape(self.real(line)).replace("…", ".*")
                wait_until(lambda text=text, log=log: re.search(text, comparable(log.read_text())), text)
        self.stop()

    def stop(self) -> None:
        """Press Ctrl-C where `make run` runs."""
        if (lock := self.folder / "var/lock").exists() and listening(self.ports[18830]):
            os.kill(int(lock.read_text()), signal.SIGINT)
            wait_until(lambda: not listening(self.ports[18830]), "it has stopped")

    def kill(self) -> None:
        """End everything, and remove the folder."""
        self.stop()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        shutil.rmtree(self.parent)


@pytest.fixture
def shell(programs):
    """A function that opens a shell with these variables in its environment."""

    def start(**environment: str) -> Shell:
        programs.append(Shell(**environment))
        return programs[-1]

    return start


@pytest.fixture
def desk(shell):
    """A shell where `make run` runs with one station."""
    opened = shell()
    opened.start("make run")
    opened.type(STATION)
    return opened


def test_every_section_with_commands_is_played():
    tests = Path(__file__).read_text()
    for command in commands():
        if not command.docker:
            played = f'play("{command.page}", "{command.section}"'
            assert played in tests, f"{played}: {command.text}"


def test_the_readme(shell):
    opened = shell()
    opened.play("README.md", "energy2go")
    opened.play("README.md", "Walk-through")
    opened.type(TRANSACTION)
    opened.finish()


def test_a_transaction_is_followed_at_debug(shell):
    opened = shell()
    opened.play("operations.md", "Start and stop")
    opened.type(STATION)
    opened.finish()
    opened.play("operations.md", "Logs", "make run", "id=")
    wait_until(lambda: re.search(r"is (COMPLETED|ERROR)", opened.type("cat var/log")), "it has a verdict")
    opened.play("operations.md", "Logs", "grep")


def test_the_details_of_http_and_the_work_on_the_code(desk):
    desk.play("http.md", "Concurrent edits")
    desk.play("http.md", "Events")
    desk.play("CONTRIBUTING.md", "Find out why a transaction does not settle")
    desk.finish()
    desk.type(f"cd {shlex.quote(str(ROOT))}")
    desk.play("CONTRIBUTING.md", "Check your work")
    desk.play("faults.md", "The simulation")


def test_backup_and_restore(desk):
    for number in range(20):
        desk.type(f"touch -d 2020-01-01 var/energy2go-20200101T0000{number:02}Z.db")
    desk.play("operations.md", "Backup and restore", "make backup", "make -s backup")
    assert len(list(desk.folder.glob("var/energy2go-2*.db"))) == 14
    desk.stop()
    desk.play("operations.md", "Backup and restore", "make restore")
    desk.type("mkdir copied && cp var/energy2go.db copied/")
    desk.play("operations.md", "Backup and restore", "sqlite3")
    desk.play("operations.md", "Upgrade and going back", "kit.undo")
    desk.start("make run")
    assert "Teste" in desk.type(LIST.replace("transactions", "stations"))


def test_the_programs_of_postgresql_and_the_way_there_from_sqlite(desk, postgres):
    desk.type(TRANSACTION)
    before = desk.type(LIST)
    desk.stop()
    desk.type(f"export DATABASE_URL={postgres.create()}")
    desk.start("make run")
    desk.stop()
    desk.play("operations.md", "Upgrade and going back", "psql")
    desk.start("make run")
    assert desk.type(LIST) == before
    desk.play("operations.md", "Backup and restore", "pg_dump", "createdb")
    postgres.execute("DROP DATABASE energy2go_utf8")
    assert '"id":2' in desk.type(STATION)
    desk.type(TRANSACTION)
    desk.stop()
    desk.play("operations.md", "Backup and restore", "pg_restore")
    desk.start("make run")
    assert desk.type(LIST) == before
    assert '"id":2' in desk.type(STATION)


def test_after_an_outage_everything_is_asked_again(shell):
    opened = shell(VALIDATION_RETRY="1", VALIDATION_TIMEOUT="2")
    opened.start("make run")
    opened.type(STATION)
    opened.type("equipment=$(pgrep -P $(cat var/lock) -f validator/validator) && kill -STOP $equipment")
    for _ in range(10):
        opened.type(TRANSACTION.replace("wait=20", "wait=0"))
    expired = f"{LIST}?status=EXPIRED | jq '.items | length'"
    wait_until(lambda: opened.type(expired).strip() == "10", "all are expired")
    opened.type("kill -CONT $equipment")
    opened.play("operations.md", "After an outage")
    wait_until(lambda: opened.type(expired).strip() == "0", "none is expired")


def test_replicas_without_containers(shell, postgres, broker):
    opened = shell(DATABASE_URL=postgres.create(), **broker.environment_of_clients)
    file = opened.folder / "deploy/nginx.conf"
    file.write_text(opened.real(file.read_text()))
    opened.play("scaling.md", "Several replicas")
    ask = f"{LIST.replace('8000', '8080')} || :"
    wait_until(lambda: '"items"' in opened.type(ask), "it answers through nginx")
