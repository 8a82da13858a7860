"""`make run`: starts the programs of the Procfile in order, and stops them in reverse order.

The first one is the broker; the others start once it listens. If one program ends, all end.
"""

import fcntl
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread

STOP_TIMEOUT = 5  # seconds that a program may take to stop
POLL_INTERVAL = 0.05  # seconds between checks of the programs
LOCK = Path("var/lock")
MAKE = os.getppid()

stops: list[int] = []  # the signals that asked us to stop


class Program:
    """A running program. We print its lines with its name in front."""

    def __init__(self, name: str, command: str, lock: int):
        self.name = name
        # If we are killed, the kernel ends it. In its own session, Ctrl-C doesn't reach it.
        self.process = subprocess.Popen(  # noqa: S603
            ["/usr/bin/setpriv", "--pdeathsig", "TERM", "/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock],
        )
        self.printer = Thread(target=self._print, daemon=True)
        self.printer.start()

    def stop(self) -> None:
        """Terminate it, and after STOP_TIMEOUT kill it. Kill the processes that it leaves behind."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.printer.join(1)

    def ended(self) -> str:
        """How it ended; empty while it runs."""
        code = self.process.poll()
        if code is None:
            return ""
        self.printer.join(1)  # its last lines have the reason
        if code < 0:
            return f"was killed by signal {-code} ({signal.strsignal(-code)})"
        return f"ended with exit code {code} (see its last lines)"

    def _print(self) -> None:
        for line in self.process.stdout or ():
            say(self.name, line)


def say(name: str, line: bytes) -> None:
    """Print one line. If that fails, stop: the terminal was closed."""
    try:
        os.write(1, b"%-9s | %s\n" % (name.encode(), line.rstrip(b"\r\n")))
    except OSError:
        stops.append(signal.SIGHUP)


def report(sentence: str) -> None:
    """Print a line of our own, with the time, as the programs do."""
    if select.select([], [1], [], 1)[1]:  # a terminal after Ctrl-S must not keep us from stopping
        say("run", time.strftime(f"%Y-%m-%dT%H:%M:%SZ {sentence}", time.gmtime()).encode())


def until(condition: Callable[[], bool], programs: list[Program]) -> None:
    """Wait for a condition. Raises SystemExit if we should stop, or if a program has ended."""
    while not condition():
        if stops or os.getppid() != MAKE:
            report("stopping")
            raise SystemExit(0)
        for program in programs:
            if how := program.ended():
                report(f"{program.name} {how}; stopping the others")
                raise SystemExit(1)
        time.sleep(POLL_INTERVAL)


def listens(address: tuple[str, int]) -> bool:
    """True if a program accepts connections there."""
    with suppress(OSError), socket.create_connection(address, 1):
        return True
    return False


def lock() -> int:
    """Lock var/ against other runs. The kernel releases the lock when the last program of this run ends."""
    try:
        LOCK.parent.mkdir(exist_ok=True)
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = LOCK.read_text("utf-8")
        why = f"another `make run` (process {other}) has not ended. Stop it first."
        raise SystemExit(f"var/ is in use: {why}") from None
    except OSError as error:
        raise SystemExit(f"{LOCK} cannot be opened: {error.strerror}. Who owns var/?") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def take_terminal(at_end: ExitStack) -> None:
    """Let Ctrl-C reach only us; make would report it as an error. Does nothing in the background."""
    with suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR)
        group = os.tcgetpgrp(terminal)
        if group == os.getpgrp() != os.getpid():
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # otherwise tcsetpgrp would stop us
            signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # the shell waits for make, not for us
            os.setpgid(0, 0)
            os.tcsetpgrp(terminal, os.getpid())
            at_end.callback(os.tcsetpgrp, terminal, group)


def main() -> None:
    """Run the programs until a signal comes or one of them ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, lambda number, _: stops.append(number))
    from kit.settings import check_port, load  # only now: it takes a while, and Ctrl-C may come at once

    settings = load()  # puts .env into the programs' environment
    broker = "::1" if settings.mqtt_host == "::1" else "127.0.0.1", settings.mqtt_port
    descriptor = lock()
    check_port("BIND", settings.address)
    check_port("MQTT_PORT", broker)
    programs: list[Program] = []
    with ExitStack() as at_end:
        take_terminal(at_end)
        for line in Path("Procfile").read_text("utf-8").splitlines():
            name, command = line.split(": ", 1)
            programs.append(Program(name, command, descriptor))
            at_end.callback(programs[-1].stop)
            until(lambda: listens(broker), programs)
        until(lambda: False, programs)


if __name__ == "__main__":
    main()
