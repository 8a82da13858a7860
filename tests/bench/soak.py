"""`make soak`: a year in a few minutes, with retention and faults; what grows, and is anything lost?"""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path

from installation import resident
from load import Load
from programs import ROOT
from report import Goal, goal_table, table
from stack import STATION, Stack, keep, step, workplace

PARTS = 20
DAYS = 90  # RETENTION_DAYS
YEAR = 365 * 24 * 60 * 60  # seconds
CLIENTS = 32
DOWN = 3.0  # seconds that a killed program stays away
# In these parts of the year we kill a program; the service only early, so that its memory may grow.
FAULTS = dict.fromkeys((3, 6), "service") | dict.fromkeys((4, 10, 16), "broker")
FAULTS |= dict.fromkeys((7, 13), "equipment")
SHOWN = (1, 11, PARTS)  # after these parts, none with a fault, we look
SIZE = "bytes of the database for each transaction"
GROWTH = 1.05  # allowed at the end, relative to the second look


def post(stack: Stack, posts: int, rate: float, fault: str) -> tuple[list[str], int]:
    """Post while a program is killed, and then again what got no answer, with the same keys.

    Returns the ids that were accepted, and how many requests got no answer.
    """
    load = Load(stack.service, clients=CLIENTS, total=posts, pause=CLIENTS / rate).start()
    if fault:
        program, after = getattr(stack, fault), posts / rate / 3
        time.sleep(after)
        program.crash() if fault == "service" else program.kill()
        time.sleep(min(DOWN, after))
        program.start()
        stack.ready()
    load.join(600)
    again, body = load.broken + load.unknown + load.refused, {"station_id": STATION}
    answers = [stack.service.post("/transactions", body, Idempotency_Key=key) for key in again]
    stack.drain(60)
    return load.accepted + [answer.json["id"] for answer in answers], len(again)


def look(stack: Stack) -> dict[str, float]:
    """A column of the table."""
    found = {f"RSS of the {name}, MB": resident(pid) for name, pid in stack.pids.items()}
    found["descriptors of the service"] = len(os.listdir(f"/proc/{stack.pids['service']}/fd"))
    found["WAL, MB"] = Path(f"{stack.file}-wal").stat().st_size / 2**20
    found["database, MB"] = stack.file.stat().st_size / 2**20
    found["transactions in it"] = stack.query('SELECT count(*) FROM "transaction"')[0][0]
    found[SIZE] = stack.file.stat().st_size / found["transactions in it"]
    found["EXPIRED"] = stack.status("EXPIRED")
    return found


def soak(folder: Path, posts: int, rate: float) -> dict:
    """The year: how many were accepted, what was lost, and the looks by number of transactions."""
    speed, began, part = YEAR * rate / posts, time.time_ns(), posts // PARTS
    found = {"accepted": 0, "unanswered": 0, "lost": [], "looks": {}}
    options = {"YEAR_BEGAN": f"{began}", "YEAR_SPEED": f"{speed}", "RETENTION_DAYS": f"{DAYS}"}
    with contextlib.ExitStack() as ends:
        path = f"{ROOT}:{ROOT}/tests/bench"
        stack = Stack(folder / "soak", ends, app="year:app", PYTHONPATH=path, **options)
        for number in range(1, PARTS + 1):
            fault = FAULTS.get(number, "")
            step(f"{number * part:,} of {posts:,} transactions{fault and f', killing the {fault}'}")
            ids, unanswered = post(stack, part, rate, fault)
            found["accepted"] += len(ids)
            found["unanswered"] += unanswered
            # Without a verdict, although it is too young to be deleted. An id begins with its time in ms.
            now, rows = began / 1e6 + (time.time_ns() - began) / 1e6 * speed, stack.rows(0)
            young = (key for key in ids if int(key.replace("-", "")[:12], 16) > now - DAYS * 86_400_000)
            found["lost"] += [key for key in young if key.replace("-", "") not in rows]
            if number in SHOWN:
                found["looks"][number * part] = look(stack)
    return found


def goals(found: dict) -> list[Goal]:
    _, middle, end = found["looks"].values()
    kept = found["accepted"] * DAYS / 365
    growing = [name for name in end if name.startswith(("RSS", "descriptors", SIZE))]
    return [
        Goal("transactions that were accepted and have no verdict", len(found["lost"]), 0),
        Goal("EXPIRED", end["EXPIRED"], 0),
        Goal("transactions kept ÷ those of the last 90 days", end["transactions in it"] / kept, 1.5),
        Goal("WAL at the end", end["WAL, MB"], 8, " MB"),
        *(Goal(f"{name}, end ÷ middle", end[name] / middle[name], GROWTH) for name in growing),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=200_000)
    parser.add_argument("--rate", type=float, default=400, help="posts a second")
    options = parser.parse_args()
    with workplace("soak") as folder:
        found = soak(folder, options.posts, options.rate)
    looks = found["looks"]
    print(goal_table(goals(found)))
    print(f"\n{found['accepted']:,} accepted, {found['unanswered']:,} after a request without an answer.\n")
    rows = ((name, *(look[name] for look in looks.values())) for name in next(iter(looks.values())))
    print(table(("after … transactions", *(f"{count:,}" for count in looks)), rows))
    keep("soak", found)
    sys.exit(1 if found["lost"] else 0)


if __name__ == "__main__":
    main()
