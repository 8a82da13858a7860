"""The programs that are measured, on free ports, and their use of processor and memory."""

import contextlib
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

from programs import Broker, Equipment, Program, Service, free_port, listening, wait_until

STATION = 1


def cpu_clock(pid: int) -> int:
    """The CPU time of all threads of a process, in nanoseconds (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def busy() -> float:
    """The CPU time of all programs since the machine started, in seconds."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return sum((user, nice, system, *rest)) / os.sysconf("SC_CLK_TCK")


def memory(pid: int, field: str) -> float:
    """The memory of a process in MB: `VmRSS` is the current value, `VmHWM` the highest."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields[field].split()[0]) / 1024


def end_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end this process and everything that it has started."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, frame: sys.exit(128 + number))


class Server:
    """An HTTP server and its processes: `pids` by name."""

    def __init__(self, port: int, pids: dict[str, int]):
        self.port, self.pids = port, pids

    def cpu(self) -> dict[str, int]:
        """The CPU time of each process and of the generator, in ns; raises OSError if one has died."""
        return {name: cpu_clock(pid) for name, pid in self.pids.items()} | {
            "generator": cpu_clock(os.getpid())
        }

    def peak(self) -> dict[str, float]:
        """The highest memory of each process, in MB."""
        return {name: memory(pid, "VmHWM") for name, pid in self.pids.items()}


class Stack(Server):
    """The three programs, ready, with one station; the exit stack `ends` stops them.

    `options` are variables of the equipment and the service.
    """

    def __init__(self, folder: Path, ends: contextlib.ExitStack, app: str = "app:app", **options: str):
        folder.mkdir(exist_ok=True)
        self.file = folder / "energy2go.db"
        self.broker = Broker(folder)
        self.equipment = Equipment(folder, self.broker, **options)
        self.service = Service(folder, self.broker, **options)
        self.service.command[-1] = app
        ends.push(self._explain)
        for program in (self.broker, self.equipment, self.service):
            ends.callback(program.stop)
            program.start()
        super().__init__(self.service.port, {})
        self.ready()
        if not self.query("SELECT 1 FROM station"):
            self.service.post("/stations", {"description": "Teste"})

    def ready(self) -> None:
        """Wait until the whole job can be done, and note the processes."""
        wait_until(self._online, "the service is ready and the equipment online", 30)
        self.pids = {"service": self.service.children[0], "master": self.service.pid}
        self.pids |= {"broker": self.broker.pid, "equipment": self.equipment.pid}

    def _explain(self, kind, error, traceback) -> None:
        """Print the programs' logs if the run ends with an error; the logs are removed with the folder."""
        if isinstance(error, Exception):
            for program in (self.broker, self.equipment, self.service):
                print(f"{program.name}: {program.said()[-2000:]}", file=sys.stderr)

    def _online(self) -> bool:
        with contextlib.suppress(OSError):
            answer = self.service.get("/readyz")
            return answer.status == 200 and "online" in answer.json["equipment"].values()
        return False

    def query(self, sql: str, *values) -> list[tuple]:
        """Query the service's database file."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=10)
        ) as database:
            return database.execute(sql, values).fetchall()

    def pending(self) -> int:
        """The number of PENDING transactions."""
        return self.query("SELECT count(*) FROM \"transaction\" WHERE status = 'PENDING'")[0][0]

    def drain(self, seconds: float) -> None:
        """Wait until nothing is PENDING; raises AssertionError if that takes longer."""
        wait_until(lambda: not self.pending(), "nothing is PENDING", seconds)

    def rows(self, since: int) -> dict[str, tuple[int, int]]:
        """`created` and `updated` of the transactions created from `since` on, by id; microseconds."""
        sql = (
            'SELECT id, created, updated FROM "transaction" '
            "WHERE created >= ? AND status IN ('COMPLETED', 'ERROR')"
        )
        return {key: (created, updated) for key, created, updated in self.query(sql, since)}


class Bare(Server):
    """The same gunicorn with another application: `bare`, `spread` or `hollow` (see `bare.conf.py`)."""

    def __init__(self, name: str, folder: Path, ends: contextlib.ExitStack):
        port = free_port()
        gunicorn = str(Path(sys.executable).with_name("gunicorn"))
        module = "hollow" if name == "hollow" else "bare"
        command = [
            gunicorn,
            "-c",
            "tests/bench/bare.conf.py",
            "--pythonpath",
            "tests/bench",
            f"{module}:app",
        ]
        environment = {
            "BIND": f"127.0.0.1:{port}",
            "BARE": name,
            "DATABASE_URL": f"sqlite:///{folder}/none.db",
        }
        program = Program(name, command, folder, environment)
        ends.callback(program.stop)
        program.start()
        wait_until(lambda: listening(port), f"{name} is served")
        (worker,) = wait_until(lambda: program.children, f"{name} has its worker")
        super().__init__(port, {"service": worker, "master": program.pid})


class Fixed(Server):
    """One fixed answer to every request; it measures the generator."""

    def __init__(self, folder: Path, ends: contextlib.ExitStack):
        port = free_port()
        environment = {"PYTHONPATH": os.environ["PYTHONPATH"]}
        program = Program("fixed", [sys.executable, "tests/bench/fixed.py", str(port)], folder, environment)
        ends.callback(program.stop)
        program.start()
        wait_until(lambda: listening(port), "the fixed answer is served")
        super().__init__(port, {"service": program.pid})
