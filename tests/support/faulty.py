"""Faults of the disk and of the wall clock, injected into a real program (see faulty.c)."""

import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from programs import ROOT, Service, wait_until
from trial import Trial


class Faults:
    """The faults of the programs that are started with `environment`."""

    def __init__(self, folder: Path):
        self.folder, library = folder / "faults", folder / "faulty.so"
        self.folder.mkdir()
        source = str(ROOT / "tests/support/faulty.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-o", str(library), source], check=True)
        self.environment = {"LD_PRELOAD": str(library), "FAULTS": str(self.folder)}

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

    def stored_keys(self) -> set[str]:
        """The idempotency keys that are stored."""
        return {key for (key,) in self.query('SELECT idempotency_key FROM "transaction"')}


def database_says(service: Service) -> str:
    """What /readyz says of the database; "" if there is no answer."""
    try:
        return service.get("/readyz").json["database"]
    except OSError:
        return ""


def says(service: Service, *words: str, seconds: float = 6) -> None:
    """Wait until /readyz is 503 with one of these words for the database."""
    said = []

    def found() -> bool:
        said.append(database_says(service))
        return any(word in said[-1] for word in words)

    try:
        wait_until(found, f"/readyz says {words}", seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}, but {set(said)}") from None
    assert service.get("/readyz").status == 503


def recovers(service: Service, seconds: float = 6) -> float:
    """Wait until the database is ok again; returns the seconds that it took."""
    began = time.monotonic()
    wait_until(lambda: database_says(service) == "ok", "the database is ok again", seconds)
    return time.monotonic() - began


def refused_at_once(service: Service, *words: str, within: float = 1) -> str:
    """Check that a POST is refused at once, with these words, as not stored; returns the detail."""
    began = time.monotonic()
    answer = service.post("/transactions", {"station_id": 1})
    assert time.monotonic() - began < within
    assert (answer.status, answer.headers["Content-Type"]) == (503, "application/problem+json"), answer.body
    detail = answer.json["detail"]
    assert "nothing was stored" in detail
    for word in words:
        assert word in detail
    return detail
