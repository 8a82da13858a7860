"""`make soak`: a year in a few minutes, with retention and faults; what grows, and is anything lost?"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

from load import Load
from programs import ROOT
from progress import step
from report import Goal, goal_table, table
from stack import STATION, Stack, end_on_signals, memory
from traffic import WINDOW

VAR = ROOT / "var"
POSTS, PARTS = 200_000, 20
DAYS = 90  # RETENTION_DAYS
YEAR = 365 * 24 * 60 * 60  # seconds
DOWN = 3.0  # seconds that a killed program stays away
# In these parts of the year a program is killed; the service only early, so that its memory may grow.
FAULTS = {"service": (3, 6), "broker": (4, 10, 16), "equipment": (7, 13)}
SHOWN = (1, 11, PARTS)  # after these parts, none with a fault, we look
SIZE = "bytes of the database for each transaction"
GROWTH = 1.05  # allowed at the end, relative to the second look


class Year:
    """The three programs in a year that takes `seconds`, and what they were sent."""

    def __init__(self, folder: Path, ends: contextlib.ExitStack, seconds: float):
        self.speed, self.began = YEAR / seconds, time.time_ns()
        options = {"YEAR_BEGAN": str(self.began), "YEAR_SPEED": str(self.speed), "RETENTION_DAYS": str(DAYS)}
        options["PYTHONPATH"] = f"{ROOT}:{ROOT}/tests/bench"
        self.stack = Stack(folder, ends, app="year:app", **options)
        self.accepted, self.unanswered = 0, 0
        self.lost: list[str] = []

    def part(self, posts: int, rate: float, fault: str) -> None:
        """Post while a program is killed, and then again what got no answer, with the same keys."""
        load = Load(self.stack.service, clients=WINDOW, total=posts, pause=WINDOW / rate).start()
        self._break(fault, posts / rate / 3)
        load.join(600)
        again, body = load.broken + load.unknown + load.refused, {"station_id": STATION}
        self.unanswered += len(again)
        answers = [self.stack.service.post("/transactions", body, Idempotency_Key=key) for key in again]
        ids = load.accepted + [answer.json["id"] for answer in answers]
        self.stack.drain(60)
        self.accepted += len(ids)
        self._compare(ids)

    def _break(self, name: str, after: float) -> None:
        if name:
            program = getattr(self.stack, name)
            time.sleep(after)
            program.crash() if name == "service" else program.kill()
            time.sleep(min(DOWN, after))
            program.start()
            self.stack.ready()

    def _compare(self, ids: list[str]) -> None:
        """Note what has no verdict although it is too young to be deleted. An id begins with its time."""
        now = self.began // 1_000_000 + (time.time_ns() - self.began) / 1_000_000 * self.speed  # ms
        found = self.stack.rows(0)
        for key in (key.replace("-", "") for key in ids):
            if key not in found and int(key[:12], 16) > now - DAYS * YEAR / 365 * 1000:
                self.lost.append(key)

    def look(self) -> dict[str, float]:
        """What is shown in a column of the table."""
        pids, file = self.stack.pids, self.stack.file
        found = {f"RSS of the {name}, MB": memory(pid, "VmRSS") for name, pid in pids.items()}
        found["descriptors of the service"] = len(os.listdir(f"/proc/{pids['service']}/fd"))
        found["WAL, MB"] = Path(f"{file}-wal").stat().st_size / 2**20
        found["database, MB"] = file.stat().st_size / 2**20
        found["transactions in it"] = self.stack.query('SELECT count(*) FROM "transaction"')[0][0]
        found[SIZE] = file.stat().st_size / found["transactions in it"]
        expired = "SELECT count(*) FROM \"transaction\" WHERE status = 'EXPIRED'"
        found["EXPIRED"] = self.stack.query(expired)[0][0]
        return found


def soak(folder: Path, posts: int, rate: float) -> tuple[Year, dict[int, dict[str, float]]]:
    """The year, and what was seen in it by number of transactions."""
    part, looks = posts // PARTS, {}
    with contextlib.ExitStack() as ends:
        year = Year(folder / "soak", ends, posts / rate)
        for number_of_part in range(1, PARTS + 1):
            fault = next((name for name, parts in FAULTS.items() if number_of_part in parts), "")
            step(f"{number_of_part * part:,} of {posts:,} transactions{fault and f', killing the {fault}'}")
            year.part(part, rate, fault)
            if number_of_part in SHOWN:
                looks[number_of_part * part] = year.look()
    return year, looks


def goals(year: Year, looks: dict[int, dict[str, float]]) -> list[Goal]:
    _, middle, end = looks.values()
    kept = year.accepted * DAYS / 365
    found = [
        Goal("transactions that were accepted and have no verdict", len(year.lost), 0),
        Goal("EXPIRED", end["EXPIRED"], 0),
        Goal("transactions kept ÷ those of the last 90 days", end["transactions in it"] / kept, 1.5),
        Goal("WAL at the end", end["WAL, MB"], 8, " MB"),
    ]
    growing = [name for name in end if name.startswith(("RSS", "descriptors", SIZE))]
    return found + [Goal(f"{name}, end ÷ middle", end[name] / middle[name], GROWTH) for name in growing]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=POSTS)
    parser.add_argument("--rate", type=float, default=400, help="posts a second")
    options = parser.parse_args()
    end_on_signals()
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=VAR) as name:
        year, looks = soak(Path(name), options.posts, options.rate)
    print(goal_table(goals(year, looks)))
    print(f"\n{year.accepted:,} accepted, {year.unanswered:,} of them after a request without an answer.\n")
    names = next(iter(looks.values()))
    rows = ((name, *(look[name] for look in looks.values())) for name in names)
    print(table(("after … transactions", *(f"{count:,}" for count in looks)), rows))
    found = {"rate": options.rate, "accepted": year.accepted, "lost": year.lost, "looks": looks}
    (VAR / ("soak.json" if options.posts == POSTS else "soak-quick.json")).write_text(
        json.dumps(found, indent=1) + "\n"
    )
    raise SystemExit(1 if year.lost else 0)


if __name__ == "__main__":
    main()
