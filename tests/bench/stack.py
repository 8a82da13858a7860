"""The programs that are measured, on free ports, and their use of processor and memory."""

import contextlib
import os
import shlex
import signal
import sqlite3
import sys
import time
from pathlib import Path

from programs import ROOT, Broker, Equipment, Service, wait_until

STATION = 1


def cpu_clock(pid: int) -> int:
    """The CPU time of all threads of a process, in nanoseconds (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def busy() -> float:
    """The CPU time of all programs since the machine started, in seconds."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return sum((user, nice, system, *rest)) / os.sysconf("SC_CLK_TCK")


def status(pid: int, field: str) -> int:
    """A number from proc_pid_status(5)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields[field].split()[0])


def memory(pid: int, field: str) -> float:
    """The memory of a process in MB: `VmRSS` is the current value, `VmHWM` the highest."""
    return status(pid, field) / 1024


def end_on_signals() -> None:
    """Let the first Ctrl-C or SIGTERM end this process and everything that it has started."""

    def end(number, frame):
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, end)


class Stack:
    """The three programs, ready, with one station; the exit stack `ends` stops them.

    `root` is the checkout that they come from. `options` are variables of the equipment and the service.
    """

    def __init__(
        self, folder: Path, ends: contextlib.ExitStack, root: Path = ROOT, app: str = "", **options: str
    ):
        folder.mkdir(exist_ok=True)
        self.file = folder / "energy2go.db"
        self.broker = Broker(folder)
        self.equipment = Equipment(folder, self.broker, **options)
        self.service = Service(folder, self.broker, **options)
        self.port = self.service.port
        if root != ROOT:
            self._take_from(root)
        self.service.command[-1] = app or self.service.command[-1]
        ends.push(self._explain)
        for program in (self.broker, self.equipment, self.service):
            ends.callback(program.stop)
            program.start()
        self.ready()
        self.service.post("/stations", {"description": "Teste"})

    def _take_from(self, root: Path) -> None:
        """Run the programs of another checkout as its own Procfile starts them."""
        lines = dict(line.split(": exec ") for line in (root / "Procfile").read_text().splitlines())
        for name, program in (("broker", self.broker), ("validator", self.equipment), ("web", self.service)):
            program.root, program.command = root, shlex.split(lines[name])
        self.broker.command[-1] = str(self.broker.folder / "broker")

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

    def restart(self) -> tuple[float, float]:
        """Restart the service: the ms until its first answer, and the MB of its processes once ready."""
        self.service.stop()
        began = time.monotonic()
        self.service.start()
        wait_until(lambda: self.service.get("/healthz").status == 200, "the service answers")
        took = (time.monotonic() - began) * 1000
        self.ready()
        return took, sum(memory(self.pids[name], "VmRSS") for name in ("service", "master"))

    def cpu(self) -> dict[str, int]:
        """The CPU time of each process and of the generator, in ns; raises OSError if one has died."""
        return {name: cpu_clock(pid) for name, pid in (self.pids | {"generator": os.getpid()}).items()}

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
