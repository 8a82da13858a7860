"""The programs that are measured, on free ports, and their use of processor and memory."""

import contextlib
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from installation import Installation, resident
from programs import ROOT, wait_until

STATION = 1
VAR = ROOT / "var"
BEGAN = time.monotonic()


def step(name: str) -> None:
    """Print on standard error that this step begins."""
    print(f"{time.monotonic() - BEGAN:4.0f} s: {name}", file=sys.stderr, flush=True)


def cpu_clock(pid: int) -> int:
    """The CPU time of all threads of a process, in nanoseconds (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def busy() -> float:
    """The CPU time of all programs since the machine started, in seconds."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return sum((user, nice, system, *rest)) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def workplace(name: str) -> Iterator[Path]:
    """A folder in var/, like that of `make run`: /tmp may be in memory, where writing costs nothing.

    The first Ctrl-C or SIGTERM ends this process, everything that it has started, and the folder.
    """

    def end(number, frame):
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, end)
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=VAR) as folder:
        yield Path(folder)


def keep(name: str, found: dict) -> None:
    """Write the results to var/."""
    (VAR / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


class Stack(Installation):
    """The three programs, ready, with one station; the exit stack `ends` stops them.

    `root` is the checkout that they come from. `options` are variables of the equipment and the service.
    """

    def __init__(
        self, folder: Path, ends: contextlib.ExitStack, root: Path = ROOT, app: str = "", **options: str
    ):
        folder.mkdir(exist_ok=True)
        programs = []
        super().__init__(folder, programs, **options)
        self.equipment.environment |= options
        self.file, self.port = folder / "energy2go.db", self.service.port
        if root != ROOT:  # run the programs of another checkout as its own Procfile starts them
            lines = dict(line.split(": exec ") for line in (root / "Procfile").read_text().splitlines())
            for name, program in zip(("broker", "validator", "web"), programs, strict=True):
                program.root, program.command = root, shlex.split(lines[name])
            self.broker.command[-1] = str(folder / "broker")
        self.service.command[-1] = app or self.service.command[-1]
        for program in programs:
            ends.callback(program.stop)
        self.start()

    @property
    def pids(self) -> dict[str, int]:
        """The process of each program."""
        pids = {"service": self.service.worker, "master": self.service.pid}
        return pids | {"broker": self.broker.pid, "equipment": self.equipment.pid}

    def restart(self) -> tuple[float, float]:
        """Restart the service: the ms until its first answer, and the MB of its processes once ready."""
        self.service.stop()
        began = time.monotonic()
        self.service.start()
        wait_until(lambda: self.service.get("/healthz").status == 200, "the service answers")
        took = (time.monotonic() - began) * 1000
        self.ready()
        return took, sum(resident(self.pids[name]) for name in ("service", "master"))

    def cpu(self) -> dict[str, int]:
        """The CPU time of each process and of the generator, in ns; raises OSError if one has died."""
        return {name: cpu_clock(pid) for name, pid in (self.pids | {"generator": os.getpid()}).items()}

    def drain(self, seconds: float) -> None:
        """Wait until nothing is PENDING; raises AssertionError if that takes longer."""
        wait_until(lambda: not self.status("PENDING"), "nothing is PENDING", seconds)

    def rows(self, since: int) -> dict[str, tuple[int, int]]:
        """`created` and `updated` of the transactions created from `since` on, by id; microseconds."""
        sql = 'SELECT id, created, updated FROM "transaction" WHERE created >= ?'
        found = self.query(f"{sql} AND status IN ('COMPLETED', 'ERROR')", since)
        return {key: (created, updated) for key, created, updated in found}
