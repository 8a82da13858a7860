"""Everything that crosses a boundary: HTTP bodies, queries and headers, MQTT payloads."""

import math
import re
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field, json

from kit.clock import SECOND, microseconds
from kit.errors import InvalidValue, NotStored, PreconditionFailed, Problem, Unavailable, kind
from kit.settings import VERSION

INFO = {
    "title": "energy2go",
    "version": VERSION,
    "description": "Starts transactions for battery stations, and shows the verdicts of the equipment.",
    "license": {"name": "MIT", "url": "https://opensource.org/license/mit"},
}
GROUPS = {
    "stations": "Where transactions happen.",
    "transactions": "Each is PENDING until the equipment confirms or refuses it, or until it expires.",
    "service": "Health, metrics and this document.",
}


class Status(StrEnum):
    """PENDING until a verdict (COMPLETED, ERROR) or until the timeout (EXPIRED)."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    ERROR = "ERROR"
    EXPIRED = "EXPIRED"


LARGEST_ID = 2**31 - 1  # for stations; PostgreSQL has no larger integer
StationId = Annotated[int, Meta(ge=1, le=LARGEST_ID, examples=[1])]
ID = "019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57"
TransactionId = Annotated[UUID, Meta(description="UUIDv7", examples=[ID])]
Time = Annotated[datetime, Meta(tz=True)]
SEARCH = "stations with this text in their description, in any letter case and however accents were typed"
WAIT = "`wait=N`: wait up to N seconds for the verdict, and never longer than 30 s (RFC 7240)"
KEY = "makes repeats safe: a text without a comma, new for each transaction"
NO_NUL = r"^[^\u0000]*$"  # PostgreSQL can store any other character in a text
# In a name: control characters, line breaks, and marks that change the text direction around it.
CONTROL = r"\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069"
INVISIBLE = r" \u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u202f"
INVISIBLE += r"\u205f-\u2065\u206a-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
VISIBLE = (
    rf"^[{INVISIBLE}]*[^{INVISIBLE}{CONTROL}][^{CONTROL}]*$(?!\n)"  # Python's $ is also before a last \n
)
Short = Annotated[str, Meta(min_length=1, max_length=255)]
Text = Annotated[Short, Meta(pattern=NO_NUL, extra={"allowed": "must have 1 to 255 characters, and no NUL"})]
NAME = "must have 1 to 255 characters, at least one of them visible, and no control characters, line breaks "
NAME += "or marks that change the direction of text"
Description = Annotated[Short, Meta(pattern=VISIBLE, examples=["Teste"], extra={"allowed": NAME})]
TAG = r'(?:W/)?("[!#-~]*")'  # an entity tag (RFC 9110, section 8.8.3)
TAGS = rf"^(\s*\*\s*|[\s,]*{TAG}(\s*,[\s,]*{TAG})*[\s,]*)$"  # empty items are allowed
IN_QUOTES = {"allowed": 'must have tags in quotes, such as "x", "y", or * for any'}
UNLESS = "tags, or `*`: get 412 and change nothing unless the station still has one of them"
IfMatch = Annotated[str, Meta(pattern=TAGS, examples=["*"], description=UNLESS, extra=IN_QUOTES)]
Statuses = Annotated[list[Status], Meta(min_length=1, description="one status, or several with commas")]
EARLIEST, LATEST = (microseconds(end.replace(tzinfo=UTC)) for end in (datetime.min, datetime.max))
LONGEST_COUNT, MOST_STEPS = 31 * 24 * 60 * 60, 200  # seconds
Step = Annotated[int, Meta(ge=1, le=LONGEST_COUNT)]
STEP = f"seconds; else the shortest whole number that makes at most {MOST_STEPS} steps"
SOME = {"allowed": f"must be 1 to 200 ids of stations with commas, each from 1 to {LARGEST_ID}"}
Stations = Annotated[
    list[StationId], Meta(min_length=1, max_length=200, description="with commas", extra=SOME)
]
Limit = Annotated[int, Meta(ge=1, le=200, description="items on a page", examples=[20])]
OfStation = Annotated[StationId | UnsetType, Meta(description="of this station")]
State = Annotated[str, Meta(description="`ok`, or the problem")]
EQUIPMENT = Meta(description="the last known state of each equipment", examples=[{"validator-1": "online"}])
Equipment = Annotated[dict[str, str] | Literal["unknown"], EQUIPMENT]
CURSOR = "the same as `Last-Event-ID`, or a time; the header goes first, then `lastEventId`"
Cursor = Annotated[str, Meta(min_length=1, description=CURSOR)]
Next = Annotated[str | None, Meta(description="the next page; null on the last one")]


class NewStation(Struct, forbid_unknown_fields=True):
    description: Description


class StationChange(Struct, forbid_unknown_fields=True):
    description: Description | UnsetType = UNSET


class Station(Struct, frozen=True):
    id: StationId
    description: Annotated[str, Meta(examples=["Teste"])]  # older releases stored other names, too

    @property
    def tag(self) -> str:
        """Changes with the station, so that two people who edit it don't overwrite each other."""
        return f'"{sha256(json.encode(self)).hexdigest()[:20]}"'

    def matches(self, tags: str) -> bool:
        """True if a list of tags has ours, or is `*`. `W/` is ignored: a proxy that compresses writes it."""
        return tags.strip() == "*" or self.tag in re.findall(TAG, tags)

    def require(self, if_match: str | None) -> None:
        """Raise PreconditionFailed if a request's If-Match lacks our tag."""
        if if_match is not None and not self.matches(if_match):
            raise PreconditionFailed(
                f"If-Match: The station has changed since you read it. Its ETag is {self.tag} now."
            )


class StationQuery(Struct, forbid_unknown_fields=True):
    q: Annotated[Text | UnsetType, Meta(description=SEARCH)] = UNSET
    limit: Limit = 50
    after: Annotated[StationId | UnsetType, Meta(description="stations with a higher id")] = UNSET


class ReadHeaders(Struct, rename={"if_none_match": "If-None-Match"}):
    if_none_match: Annotated[str, Meta(description="tags: get 304 if the station still has one")] = ""


class ChangeHeaders(Struct, rename={"if_match": "If-Match"}):
    if_match: IfMatch | None = None


class StationPage(Struct):
    items: list[Station]
    next: Next


class EventQuery(Struct, forbid_unknown_fields=True):
    station_id: OfStation = UNSET
    after: Cursor | UnsetType = UNSET
    last_event_id: Cursor | UnsetType = field(default=UNSET, name="lastEventId")


class EventHeaders(Struct, rename={"last_event_id": "Last-Event-ID"}):
    last_event_id: Annotated[str, Meta(description="resume after this event; without it, start now")] = ""


class NewTransaction(Struct, forbid_unknown_fields=True):
    station_id: StationId


class Transaction(Struct, frozen=True):
    id: TransactionId
    station: Station
    status: Status
    created: Annotated[datetime, Meta(tz=True, examples=["2026-03-28T00:18:13.786299Z"])]
    updated: Annotated[datetime, Meta(tz=True, examples=["2026-03-28T00:18:13.788410Z"])]
    attempts: Annotated[int, Meta(ge=0, description="questions since its deadline started")]
    asked: Annotated[Time | None, Meta(description="time of the last question; null: not asked yet")]
    expires: Annotated[Time | None, Meta(description="null with a verdict, or while its clock is stopped")]
    reason: Annotated[str | None, Meta(description="why, if the verdict says so")]
    equipment: Annotated[str | None, Meta(description="who gave the verdict, if it says so")]


class TransactionQuery(Struct, forbid_unknown_fields=True):
    status: Statuses | UnsetType = UNSET
    station_id: OfStation = UNSET
    idempotency_key: Annotated[Text | UnsetType, Meta(description="created with this key")] = UNSET
    created_from: Annotated[Time | UnsetType, Meta(description="created then or later")] = UNSET
    created_to: Annotated[Time | UnsetType, Meta(description="created then or earlier")] = UNSET
    limit: Limit = 50
    after: Annotated[UUID | UnsetType, Meta(description="transactions with a lower id")] = UNSET


class TransactionPage(Struct):
    items: list[Transaction]
    next: Next


class CountQuery(Struct, forbid_unknown_fields=True, rename={"begin": "from"}):
    begin: Annotated[Time | UnsetType, Meta(description="created then or later; else `to` - 10 min")] = UNSET
    to: Annotated[Time | UnsetType, Meta(description="created before; else now")] = UNSET
    step: Annotated[Step | UnsetType, Meta(description=STEP)] = UNSET
    station_id: OfStation = UNSET

    def times(self, now: int) -> tuple[int, int, int]:
        """From and to, in microseconds, and the step in seconds; raises InvalidValue."""
        end = min(microseconds(self.to), LATEST) // 1000 * 1000 if self.to else now
        begin = microseconds(self.begin) // 1000 * 1000 if self.begin else end - 600 * SECOND
        begin = max(begin, EARLIEST)
        if not begin < end <= begin + LONGEST_COUNT * SECOND:
            raise InvalidValue("query.to: must be later than query.from, by 31 days at most.")
        shortest = math.ceil((end - begin) / SECOND / MOST_STEPS)
        if self.step and self.step < shortest:
            raise InvalidValue(f"query.step: must be at least {shortest}, for {MOST_STEPS} steps at most.")
        return begin, end, self.step or shortest


class Count(Struct, rename={"begin": "from"}):
    begin: Time
    PENDING: int
    COMPLETED: int
    ERROR: int
    EXPIRED: int


class Counts(Struct, rename={"begin": "from"}):
    begin: Time
    to: Time
    step: Annotated[int, Meta(description="seconds; the last step may be shorter")]
    items: list[Count]


class LatestQuery(Struct, forbid_unknown_fields=True):
    station_id: Stations


class Latest(Struct):
    items: list[Transaction]


class WaitHeaders(Struct, rename={"prefer": "Prefer", "idempotency_key": "Idempotency-Key"}):
    prefer: Annotated[str, Meta(description=WAIT, examples=["wait=5"])] = ""


class TransactionHeaders(WaitHeaders):
    idempotency_key: Annotated[Text | None, Meta(description=KEY)] = None


class Unready(Problem, kw_only=True):
    """A problem with the fields of Readiness."""

    database: State
    broker: State
    equipment: Equipment


KeyMalformed = kind(400, "Key malformed", "The Idempotency-Key was sent twice, or has a comma.")
HasTransactions = kind(409, "Has transactions", "The station has transactions.")
NotExpired = kind(409, "Not expired", "The transaction is not EXPIRED.")
NoStation = kind(422, "No station", "There is no such station.")
KeyUsed = kind(422, "Key used", "The Idempotency-Key was used before, with another body.")
NoMoreIds = kind(503, "No more ids", "All ids of stations have been used, so nothing was stored.", NotStored)
TooManyClients = kind(503, "Too many clients", "Too many clients wait or follow events.", Unavailable)


class Health(Struct):
    version: Annotated[str, Meta(examples=["1.0.0"])]
    status: Literal["ok"] = "ok"


class Readiness(Struct):
    database: State
    broker: State
    equipment: Equipment


NotReady = kind(503, "Not ready", "The whole job cannot be done now.", Unavailable, shape=Unready)


class Question(Struct, frozen=True):
    """Published on EQUIPMENT/VALIDATION."""

    transaction_id: UUID
    station_id: int


class Response(Struct):
    """Received on EQUIPMENT/VALIDATION/RESPONSE. A strange text doesn't spoil the verdict."""

    transaction_id: UUID
    status: Literal["COMPLETED", "ERROR"]
    reason: Raw = Raw(b"null")
    equipment: Raw = Raw(b"null")


class Verdict(Struct, frozen=True):
    """A response with its texts, if they are usable."""

    transaction_id: UUID
    status: Literal["COMPLETED", "ERROR"]
    reason: str | None = None
    equipment: str | None = None
