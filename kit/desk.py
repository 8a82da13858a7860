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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Self

PATIENCE = 5  # seconds that a program may take to stop
LOOK = 0.05  # seconds from one look at the programs to the next
LOCK = Path("var/lock")
MAKE = os.getppid()

stops: list[int] = []  # the signals that asked us to stop


class Program:
    """A program that runs while it is entered as a context manager. Its lines get its name in front."""

    def __init__(self, name: str, command: str, lock: int):
        self.name = name
        # If we are killed, the kernel ends it. In its own session, Ctrl-C does not reach it.
        self.process = subprocess.Popen(  # noqa: S603
            ["/usr/bin/setpriv", "--pdeathsig", "TERM", "/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock],
        )
        self.printer = Thread(target=self._print, daemon=True)

    def __enter__(self) -> Self:
        self.printer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it; after PATIENCE, kill it. Kill what it has left behind."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.printer.join(1)

    def ended(self) -> str:
        """How it ended; empty while it runs."""
        code = self.process.poll()
        if code is None:
            return ""
        self.printer.join(1)  # its last lines say why
        if code < 0:
            return f"was killed by signal {-code} ({signal.strsignal(-code)})"
        return f"ended with exit code {code} (see its last lines)"

    def _print(self) -> None:
        for line in self.process.stdout or ():
            say(self.name, line)


def say(name: str, line: bytes) -> None:
    """Print one line. If it cannot be printed, stop: the terminal was closed."""
    try:
        os.write(1, b"%-9s | %s\n" % (name.encode(), line.rstrip(b"\r\n")))
    except OSError:
        stops.append(signal.SIGHUP)


def report(sentence: str) -> None:
    """Print a line of our own, with the time, as the programs do."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if select.select([], [1], [], 1)[1]:  # a terminal after Ctrl-S must not keep us from stopping
        say("run", f"{now} {sentence}".encode())


def until(condition: Callable[[], bool], programs: list[Program]) -> None:
    """Wait until this is true. Raises SystemExit if we are to stop, or if a program has ended."""
    while not condition():
        if stops or os.getppid() != MAKE:
            report("stopping")
            raise SystemExit(0)
        for program in programs:
            if how := program.ended():
                report(f"{program.name} {how}; stopping the others")
                raise SystemExit(1)
        time.sleep(LOOK)


def listens(address: tuple[str, int]) -> bool:
    """True if a program accepts connections there."""
    with suppress(OSError), socket.create_connection(address, 1):
        return True
    return False


def lock() -> int:
    """Keep other runs out of var/. The kernel frees the lock with the last program of this run."""
    try:
        LOCK.parent.mkdir(exist_ok=True)
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = LOCK.read_text("utf-8")
        raise SystemExit(
            f"var/ is in use: another `make run` (process {other}) has not ended. Stop it first."
        ) from None
    except OSError as error:
        raise SystemExit(f"{LOCK} cannot be opened: {error.strerror}. Who owns var/?") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


@contextmanager
def foreground() -> Iterator[None]:
    """Take the terminal, so that Ctrl-C reaches only us. make would report it as an error.

    It has no effect without a terminal, or in the background.
    """
    with ExitStack() as give_back:
        with suppress(OSError):
            terminal = os.open("/dev/tty", os.O_RDWR)
            group = os.tcgetpgrp(terminal)
            if group == os.getpgrp() != os.getpid():
                signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # otherwise tcsetpgrp would stop us
                signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # the shell waits for make, not for us
                os.setpgid(0, 0)
                os.tcsetpgrp(terminal, os.getpid())
                give_back.callback(os.tcsetpgrp, terminal, group)
        yield


def main() -> None:
    """Run the programs until a signal comes or one of them ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, lambda number, _: stops.append(number))
    # Imported only now, because it takes a while, and Ctrl-C may come at once.
    from kit.settings import broker_address, check_ports, load

    settings = load()  # puts what .env says into the environment, where the programs find it
    descriptor = lock()
    check_ports(settings)
    programs: list[Program] = []
    with foreground(), ExitStack() as started:
        for line in Path("Procfile").read_text("utf-8").splitlines():
            name, command = line.split(": ", 1)
            programs.append(started.enter_context(Program(name, command, descriptor)))
            until(lambda: listens(broker_address(settings)), programs)
        until(lambda: False, programs)


if __name__ == "__main__":
    main()
