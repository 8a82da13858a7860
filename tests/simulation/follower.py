"""A client that follows events, and the story that it must have been told."""

import asyncio
from bisect import bisect_right
from uuid import UUID

from kit.errors import Refusal
from process import Process
from rules import SETTLED, Rules


class Story:
    """What a follower was told: each verdict after its cursor, once, in the order of commits."""

    def __init__(self, rules: Rules):
        self.rules = rules
        self.cursor: tuple[int, str] | None = None
        self.place = 0  # how many verdicts lie before the cursor
        self.came = 0  # when its client came
        self.excused = False  # after a reset: what retention took

    def begins(self, name: str, cursor: tuple[int, str]) -> None:
        require = self.rules.require
        if name == "reset":
            self.cursor, self.place, self.excused = None, 0, True
            require(cursor == (0, "0" * 32), "a reset begins at the start", cursor)
            require(self.rules.deleted, "there is a reset only after retention")
        elif self.cursor is None:
            self.place = bisect_right(self.rules.verdicts, (*cursor, 99))
        else:
            require(cursor == self.cursor, "a stream goes on where it ended", cursor, self.cursor)
            gone = [
                self.rules.deleted.get(key, self.came) for _, key, _ in self.rules.verdicts[self.place :]
            ]
            require(min(gone, default=self.came) >= self.came, "a stream begins with a reset", cursor)
            self.excused = False
        self.cursor = cursor

    def told(self, cursor: tuple[int, str], status: str, station: int | None) -> None:
        """An event with this id: a transaction with this status, or a heartbeat."""
        require, verdicts = self.rules.require, self.rules.verdicts
        require(cursor >= self.cursor, "events come in order", cursor, self.cursor)
        require(cursor > self.cursor or not status, "no event is sent twice", cursor)
        while self.place < len(verdicts) and verdicts[self.place][:2] < cursor:
            self._missed(*verdicts[self.place], station)
        if status in SETTLED:
            there = self.place < len(verdicts) and verdicts[self.place][:2] == cursor
            require(there, "a follower is told each verdict as it was stored", cursor)
            self.place += 1
        elif not status:
            while self.place < len(verdicts) and verdicts[self.place][:2] == cursor and cursor > self.cursor:
                self._missed(*verdicts[self.place], station)
        self.cursor = cursor

    def _missed(self, updated: int, key: str, of: int, station: int | None) -> None:
        gone = self.excused and key in self.rules.deleted
        self.rules.require(gone or station not in (None, of), "a follower misses no verdict", updated, key)
        self.place += 1

    @property
    def behind(self) -> bool:
        """True if it has not been told everything yet."""
        rest = self.rules.verdicts[self.place :]
        return any(key not in self.rules.deleted for _, key, _ in rest)


class Follower:
    """A client that follows events, and comes back with its last id."""

    def __init__(self, world, station: int | None):
        self.world, self.station, self.story = world, station, Story(world.rules)
        self._task: asyncio.Task | None = None
        self._process: Process | None = None

    def come(self, process: Process) -> None:
        if self._task and not self._task.done() and not self._process.dead:
            return
        self._process, self._task = process, process.start(self._follow(process))
        self.story.came = self.world.now

    def leave(self) -> None:
        if self._task and not self._process.dead:
            self._task.cancel()

    async def _follow(self, process: Process) -> None:
        cursor = self.story.cursor
        try:
            stream = process.changes.follow(cursor and (cursor[0], UUID(cursor[1])), self.station)
            async for chunk in stream:
                self._take(process, chunk)
        except (Refusal, asyncio.CancelledError) as error:
            self.world.note(process, "ends", repr(error))

    def _take(self, process: Process, chunk: bytes) -> None:
        for block in chunk.decode().strip().split("\n\n"):
            event = dict(line.split(": ", 1) for line in block.split("\n"))
            if "id" not in event:
                continue
            updated, key = event["id"].split("-")
            cursor = int(updated), key
            self.world.note(process, "event", event["event"], cursor)
            if event["event"] in ("begin", "reset"):
                self.story.begins(event["event"], cursor)
            else:
                status = event["data"].partition('"status":"')[2].partition('"')[0]
                self.story.told(cursor, status, self.station)
