"""`make run` in a copy of the project's folder, in a terminal or without one."""

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from threading import Thread

from installation import Server
from programs import COVERAGE, ROOT, children, free_port, listening, wait_until

FILES = [".env", "Makefile", "Procfile", "mosquitto.conf", "pyproject.toml"]
FILES += ["requirements.txt", "requirements-dev.txt"]


def copy_tree(folder: Path) -> Path:
    """Copy what `make run` needs to this folder, which gets a .venv that uses the packages of this one."""
    folder.mkdir()
    for name in (*FILES, *(path.name for path in ROOT.glob("*.py"))):
        shutil.copy2(ROOT / name, folder)
    for name in ("kit", "migrations", "deploy", "validator"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "corpus"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (packages,) = (folder / ".venv").glob("lib/python*/site-packages")
    here = sysconfig.get_path("purelib")
    (packages / "running.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    (folder / ".venv/run").touch()
    return folder


class Desk:
    """`make run`. With a terminal, Ctrl-C is typed there; without one, make and the rest get SIGINT."""

    def __init__(self, folder: Path, terminal: bool = True, nohup: bool = False, **environment):
        self.folder, self.port, self.broker = folder, free_port(), free_port()
        own = {"BIND": f"127.0.0.1:{self.port}", "MQTT_PORT": str(self.broker), "HOME": str(folder)}
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/bin"} | COVERAGE | own | environment
        self.web = Server(self.port)
        self.written, self.terminal, self.hung_up = b"", terminal, False
        # `-o packages`: no test installs anything.
        command = ["setsid", "make", "-s", "-o", "packages", f"PYTHON={sys.executable}", "run"]
        if terminal:  # a shell owns it
            line = shlex.join(command[1:])
            line = f"nohup {line} > nohup.out 2>&1 & exec sleep 600" if nohup else f"{line}; exit $?"
            command = ["setsid", "--ctty", "sh", "-c", line]
        self.end, end = os.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=self.environment,
            stdin=end if terminal else subprocess.DEVNULL,
            stdout=end,
            stderr=end,
        )
        os.close(end)
        self.reader = Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # no process has the terminal open any more
            while not self.hung_up:
                ready, _, _ = select.select([self.end], [], [], 0.05)
                if ready and not (some := os.read(self.end, 65_536)):
                    break
                self.written += some if ready else b""
        os.close(self.end)

    def said(self) -> str:
        """What it has printed."""
        return self.written.decode(errors="replace").replace("\r\n", "\n")

    def wait_for(self, text: str) -> None:
        """Wait until it has printed this."""
        wait_until(lambda: text in self.said() or self.process.poll() is not None, text)
        assert text in self.said(), self.said()

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        if self.terminal:
            os.write(self.end, b"\x03")
        else:
            os.killpg(self.process.pid, signal.SIGINT)

    def hang_up(self) -> None:
        """Close the terminal."""
        self.hung_up = True

    def wait(self) -> int:
        """Wait for the end of make and of all that it has started, and return make's exit status."""
        status = self.process.wait(60)
        for port in (self.port, self.broker):
            wait_until(lambda port=port: not listening(port), "nothing listens")
        self.reader.join(5)
        return status

    @property
    def launcher(self) -> int:
        """The pid of the program that starts the others."""
        return int((self.folder / "var/lock").read_text())

    def pid(self, part: str) -> int:
        """The pid of one of the programs: mosquitto, validator or gunicorn."""
        found = children(self.launcher)
        (pid,) = (pid for pid in found if part in Path(f"/proc/{pid}/cmdline").read_text())
        return pid

    def kill(self) -> None:
        """End what still runs: the kernel ends the programs with their launcher."""
        if self.process.poll() is None:
            os.kill(self.launcher, signal.SIGKILL)
            self.wait()
