"""Faults of the disk and of the wall clock, injected into a real program (see faulty.c)."""

import atexit
import functools
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from programs import ROOT, Service, wait_until
from trial import Trial


@functools.cache
def library() -> str:
    """faulty.c, built once for this process."""
    folder = tempfile.mkdtemp(prefix="energy2go-faulty-")
    atexit.register(shutil.rmtree, folder)
    built = Path(folder) / "faulty.so"
    source = str(ROOT / "tests/support/faulty.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-o", str(built), source], check=True)
    return str(built)


class Faults:
    """The faults of the programs that are started with `environment`."""

    def __init__(self, folder: Path):
        self.folder = folder / "faults"
        self.folder.mkdir()
        self.environment = {"LD_PRELOAD": library(), "FAULTS": str(self.folder)}

    def begin(self, name: str) -> None:
        (self.folder / name).touch()

    def end(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def during(self, name: str):
        """The fault lasts until the block ends."""
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def set_clock(self, seconds: float) -> None:
        """Let the wall clock be off by so many seconds."""
        new = self.folder / "new"
        new.write_text(str(int(seconds)))
        new.replace(self.folder / "clock")  # at once: the file is never empty


class FaultyTrial(Trial):
    """A trial whose service has these faults."""

    def __init__(self, folder: Path, programs: list, **options):
        self.faults = Faults(folder)
        super().__init__(folder, programs, **self.faults.environment | options)


def says(service: Service, *words: str) -> None:
    """Wait until /readyz says one of these words of the database."""
    wait_until(lambda: any(word in service.says("database") for word in words), f"/readyz says {words}")


def recovers(service: Service) -> None:
    """Wait until the database is ok again."""
    wait_until(lambda: service.says("database") == "ok", "the database is ok again")


def refused(service: Service, *words: str) -> str:
    """Check that a POST is refused with these words, as not stored; returns the detail."""
    answer = service.post("/transactions", {"station_id": 1})
    assert (answer.status, answer.headers["Content-Type"]) == (503, "application/problem+json"), answer.body
    assert answer.headers["Retry-After"]
    detail = answer.json["detail"]
    assert "nothing was stored" in detail
    for word in words:
        assert word in detail
    return detail
