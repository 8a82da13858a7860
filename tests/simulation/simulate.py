"""Draw events, run them in a world, and shorten the list if a rule is broken.

`python simulate.py --seed 7 --steps 100000` draws new worlds; with a file, it repeats the events in it.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

import events
import models
from database import FAULTS, template
from kit import clock, files, storage
from rules import Violation
from world import Log, World

FOUND = Path(__file__).parent / "found"
LENGTHS = (100, 600, 3000)  # events of a world
SHORTEN = 30  # seconds
CONFIG = {
    "seed": range(10**9),
    "processes": (1, 2, 2),
    "retry": (1, 5, 20),
    "timeout": (25, 40, 60),
    "window": (3, 10, 1000),
    "claim": (2, 500),
    "page": (5, 100),
    "retention": (0, 1, 1),
    "calm": ("honest", "slow", "silent", "flapping"),
}
GAPS = (0, 1, 2, 5, 10, 20, 50, 100, 250, 400)  # milliseconds between two events


DAY = 86400
# The events, with the values that each of their arguments may have.
EVENTS = {
    "time": (),
    "create": (range(-1000, 1000), (1, 1, 1, 2, 7)),
    "burst": (range(2, 50),),
    "retry": (range(100),),
    "wait": (range(-5, 0), (1, 5, 30)),
    "follow": (range(3),),
    "leave": (range(3),),
    "kill": (range(1, 200),),
    "kill_soon": (range(1, 12),),
    "start": (),
    "clock": ((0, 0, 1, -1, 3600, -3600, 2 * DAY, -400 * DAY, 400 * DAY),),
    "database": ([*FAULTS], (1, 1, 2, 3, 12)),
    "leap": ((1, 25, 50),),
    "cut": ((False, True),),
    "up": ((True, True, False),),
    "connack": (("accept", "accept", "refuse", "silent"),),
    "suback": (("grant", "grant", "grant", "lost", "refuse", "one", "none"),),
    "puback": (("late", "late", "inside", "never", "refuse"),),
    "delivery": (("once", "once", "twice", "lost"),),
    "limits": (("ReceiveMaximum", "ReceiveMaximum", "MaximumQoS"), (1, 1, 3, 10, 20)),
    "flow": (("well", "well", "slow", "stuck"),),
    "equipment": (("honest", "honest", "slow", "silent", "deaf"),),
    "answer": (range(-30, 0), (False, False, True)),
    "garbage": (range(9),),
    "status": (("a", "b"), ("online", "offline", "neither")),
}
USUAL = {"create": 15, "time": 15, "start": 2, "up": 1, "flow": 1, "equipment": 1, "follow": 1}
# What a world changes in the product.
PLACES = [(models, "WINDOW"), (models, "CLAIM"), (events, "PAGE"), (events, "RECENT"), (clock, "randbits")]
PLACES += [(storage, "connect"), (logging.getLogger(), "handlers")]


def draw(seed: object) -> list:
    """A world and what happens in it. Each world has only some kinds of trouble, so that rare ones meet."""
    random = Random(f"{seed}")
    config = {name: random.choice(values) for name, values in CONFIG.items()}
    trouble = random.choice(((0, 0, 1, 2, 6), (0, 0, 0, 0, 0, 0, 0, 1, 2, 6)))  # much or little
    weights = {kind: USUAL.get(kind, 0) + random.choice(trouble) for kind in EVENTS}
    weights["start"] += weights["kill"] + weights["kill_soon"]
    at, speed, keys = 0.0, random.choice((0.2, 1, 1, 5)), random.choice((2, 20, 1000))
    pauses = random.choice((100, 1000))
    drawn: list[list] = [["world", config], [0, "limits", 0, "ReceiveMaximum", random.choice((1, 20, 99))]]
    for kind in random.choices([*weights], [*weights.values()], k=random.choice(LENGTHS)):
        at += random.choice(GAPS) * speed if random.randrange(pauses) else random.randrange(60_000)
        process, values = random.randrange(2), [random.choice(values) for values in EVENTS[kind]]
        if kind == "create":
            values[0] = f"key {values[0] % keys}" if values[0] >= 0 else None
        drawn.append([int(at), kind, process, *values])
        if kind in ("clock", "database") and random.randrange(2):
            drawn.append([int(at), "create", process, None, 1])
            if kind == "clock":  # it was wrong for a moment only
                drawn.append([int(at), "clock", process, 0])
    return drawn


class Runner:
    """Runs lists of events, each in a world of its own in `folder`."""

    def __init__(self, folder: str):
        self._folder, self._template, self.steps = folder, f"{folder}/template.db", 0
        self.world: World
        template(self._template)

    def violation(self, events: list) -> str:
        """Run these events; returns the rule that they break, or ''."""
        for old in Path(self._folder).glob("world.db*"):
            old.unlink()
        world = self.world = World(events[0][1], self._template, f"{self._folder}/world.db")
        logging.getLogger().handlers = [Log(world)]
        try:
            for event in events[1:]:
                world.apply(event)
            world.calm()
        except Violation:
            return world.failures[0]
        except Exception as error:
            return f"no step raises: {error!r}"
        finally:
            world.close()
            self.steps += world.steps
        return ""

    def shorten(self, events: list, seconds: float = SHORTEN) -> list:
        """Leave out events while the same rule is broken."""
        rule, until = name(self.violation(events)), time.process_time() + seconds
        events, size = events[: self.world.applied + 1], self.world.applied // 2
        while size and time.process_time() < until:
            start, before = 1, len(events)
            while start < len(events) and time.process_time() < until:
                fewer = events[:start] + events[start + size :]
                if name(self.violation(fewer)) == rule:
                    events = fewer[: self.world.applied + 1]
                else:
                    start += size
            size = size if size == 1 and len(events) < before else size // 2
        return events


def name(violation: str) -> str:
    """The rule that was broken, without what broke it."""
    return violation.partition(":")[0]


@contextmanager
def runner() -> Iterator[Runner]:
    """A runner in memory, if the machine has a file system there. Afterwards the product is as it was."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        TemporaryDirectory(prefix="energy2go-", dir=memory) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        for module, name in PLACES:
            patch.setattr(module, name, getattr(module, name))
        runner = Runner(folder)
        # Migrations and damaged files have tests of their own.
        patch.setattr(storage, "prepare", lambda *_: None)
        patch.setattr(files, "warn_of_mount", lambda _: None)
        patch.setattr(files, "left_behind", lambda _: [])
        yield runner


def search(worlds: Runner, seed: object, steps: float, seconds: float, now=time.monotonic, shorten=SHORTEN):
    """Run new worlds until a rule is broken; returns the events of that world, shortened, and the rule."""
    until, end = now() + seconds, worlds.steps + steps
    for number in count():
        if worlds.steps >= end or now() > until:
            break
        events = draw(f"{seed}/{number}")
        if worlds.violation(events):
            events = worlds.shorten(events, shorten)
            return events, worlds.violation(events)
    return [], ""


def text(events: list) -> str:
    """A list of events, as many in a line as fit."""
    lines = [""]
    for event in map(json.dumps, events):
        lines = [*lines[:-1], f"{lines[-1]} {event},".strip()]
        if len(lines[-1]) > 110:
            lines = [*lines[:-1], lines[-1].removesuffix(f"{event},").strip(), f"{event},"]
    return "[\n" + "\n".join(filter(None, lines)).removesuffix(",") + "\n]"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--events", default="")
    options = parser.parse_args()
    began = time.monotonic()
    with runner() as worlds:
        if options.events:
            broken = worlds.violation(json.loads(Path(options.events).read_text()))
        else:
            events, broken = search(worlds, options.seed, options.steps, 1e9)
        if broken:
            print(*worlds.world.last, sep="\n")
        speed, trace = worlds.steps / (time.monotonic() - began), worlds.world.trace
        print(f"SEED={options.seed}: {worlds.steps} steps, {speed:.0f} a second; trace {trace:08x}")
    if broken and not options.events:
        file = FOUND / f"{options.seed}.json"
        file.write_text(text(events) + "\n")
        print(f"to repeat it: PYTHONHASHSEED=0 make simulate EVENTS={file}")
    sys.exit(broken or 0)


if __name__ == "__main__":
    main()
