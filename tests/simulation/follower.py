"""A client that follows events and comes back with its last id: each verdict must come once, in order."""

import asyncio
import re
from bisect import bisect_right
from uuid import UUID

from kit.errors import Refusal
from process import Process
from rules import SETTLED

EVENT = re.compile(r'event: (\w+)\nid: (\d+)-(\w+)\ndata: (?:\{\}|.*?"id":(\d+),.*?"status":"(\w+)".*)\n')
Cursor = tuple[int, str]


class Follower:
    def __init__(self, world, station: int | None):
        self.world, self.rules, self.station = world, world.rules, station
        self.cursor: Cursor | None = None
        self.place = 0  # how many verdicts lie before the cursor
        self.came = 0  # when this stream began
        self.excused = False  # after a reset: what retention took
        self._task: asyncio.Task | None = None

    def come(self, process: Process) -> None:
        if not self._task or self._task.done() or self._process.dead:
            self._process, self.came = process, self.world.now
            self._task = process.start(self._follow(process))

    def leave(self) -> None:
        if self._task and not self._process.dead:
            self._task.cancel()

    async def _follow(self, process: Process) -> None:
        cursor = self.cursor and (self.cursor[0], UUID(self.cursor[1]))
        try:
            async for chunk in process.changes.follow(cursor, self.station):
                for name, updated, key, station, status in EVENT.findall(chunk.decode()):
                    self.world.note(process, "event", name, updated, key)
                    tell = self._begins if name in ("begin", "reset") else self._told
                    tell(name, (int(updated), key), station, status)
        except (Refusal, asyncio.CancelledError) as error:
            self.world.note(process, "ends", repr(error))

    def _begins(self, name: str, cursor: Cursor, *_: str) -> None:
        require, verdicts, deleted = self.rules.require, self.rules.verdicts, self.rules.deleted
        self.excused = name == "reset"
        if self.excused:
            require(cursor == (0, "0" * 32), "a reset begins at the start", cursor)
            require(deleted, "there is a reset only after retention")
        elif self.cursor:
            require(cursor == self.cursor, "a stream goes on where it ended", cursor, self.cursor)
            gone = [deleted.get(key, self.came) for _, key, _ in verdicts[self.place :]]
            require(min(gone, default=self.came) >= self.came, "a stream begins with a reset", cursor)
        self.cursor, self.place = cursor, bisect_right(verdicts, (*cursor, 99))

    def _told(self, name: str, cursor: Cursor, station: str, status: str) -> None:
        """An event: a transaction with this status, or a heartbeat, which is about all up to its cursor."""
        require, verdicts = self.rules.require, self.rules.verdicts
        require(cursor >= self.cursor, "events come in order", cursor, self.cursor)
        require(cursor > self.cursor or not status, "no event is sent twice", cursor)
        require(
            not station or self.station in (None, int(station)), "a station's stream has no other", station
        )
        end = cursor if status else (*cursor, 99)
        while self.place < len(verdicts) and verdicts[self.place] < end:
            updated, key, of = verdicts[self.place]
            gone = (self.excused and key in self.rules.deleted) or self.station not in (None, of)
            require(gone, "a follower misses no verdict", updated, key)
            self.place += 1
        if status in SETTLED:
            there = self.place < len(verdicts) and verdicts[self.place][:2] == cursor
            require(there, "a follower is told each verdict as it was stored", cursor)
            self.place += 1
        self.cursor = cursor

    @property
    def behind(self) -> bool:
        """True if it has not been told everything yet."""
        return any(key not in self.rules.deleted for _, key, _ in self.rules.verdicts[self.place :])
