"""Everything that crosses a boundary: HTTP bodies, queries and headers, MQTT payloads."""

import re
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType, field, json
from msgspec.structs import asdict

from kit.errors import NotStored, PreconditionFailed, Problem, Refusal, Unavailable


class Status(StrEnum):
    """PENDING until a verdict (COMPLETED, ERROR) or until the timeout (EXPIRED)."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    ERROR = "ERROR"
    EXPIRED = "EXPIRED"


LARGEST_ID = 2**31 - 1  # of a station; PostgreSQL has no larger integer
StationId = Annotated[int, Meta(ge=1, le=LARGEST_ID, examples=[1])]
TransactionId = Annotated[
    UUID, Meta(description="UUIDv7", examples=["019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57"])
]
Time = Annotated[datetime, Meta(tz=True)]
NO_NUL = r"^[^\u0000]*$"  # the one character that PostgreSQL cannot store in a text
NOT_BLANK = r"^\s*[^\s\u0000][^\u0000]*$"
Description = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=255,
        pattern=NOT_BLANK,
        examples=["Teste"],
        extra={"allowed": "1 to 255 characters, not only blanks, and no NUL"},
    ),
]
Text = Annotated[
    str,
    Meta(min_length=1, max_length=255, pattern=NO_NUL, extra={"allowed": "1 to 255 characters, and no NUL"}),
]
FOUND = "list those with this text in their description, in any letter case and however typed"
Search = Annotated[Text, Meta(description=FOUND)]
SAME = "the same key and body get the same transaction again; it has no comma"
IdempotencyKey = Annotated[Text, Meta(description=SAME)]
TAG = r'(?:W/)?("[!#-~]*")'  # an entity tag (RFC 9110, section 8.8.3)
TAGS = rf"^(\s*\*\s*|[\s,]*{TAG}(\s*,[\s,]*{TAG})*[\s,]*)$"  # empty items are allowed
Limit = Annotated[int, Meta(ge=1, le=200, description="items on a page", examples=[20])]
WAIT = "`wait=N` holds the answer until the verdict, N seconds at most, and never more than 30 (RFC 7240)"
Prefer = Annotated[str, Meta(description=WAIT, examples=["wait=5"])]
IfMatch = Annotated[
    str,
    Meta(
        pattern=TAGS,
        examples=["*"],
        extra={"allowed": 'tags in quotes, such as "x", "y", or * for any'},
        description="tags (ETag), or `*`: change nothing, and answer 412, unless it still has one of these",
    ),
]
Statuses = Annotated[
    list[Status], Meta(min_length=1, description="one of these statuses; write several with commas")
]
State = Annotated[str, Meta(description="`ok`, or what is wrong with it")]
Equipment = Annotated[
    dict[str, str] | Literal["unknown"],
    Meta(description="what each equipment said last", examples=[{"validator-1": "online"}]),
]
Cursor = Annotated[
    str,
    Meta(min_length=1, description="the same as `Last-Event-ID`, which goes first, and `lastEventId` next"),
]
Next = Annotated[str | None, Meta(description="the next page; null on the last one")]


class NewStation(Struct, forbid_unknown_fields=True):
    description: Description


class StationChange(Struct, forbid_unknown_fields=True):
    description: Description | UnsetType = UNSET


class Station(Struct, frozen=True):
    id: StationId
    description: Description

    @property
    def tag(self) -> str:
        """Changes with the station, so that two people who edit it do not overwrite each other."""
        return f'"{sha256(json.encode(self)).hexdigest()[:20]}"'

    def matches(self, tags: str) -> bool:
        """True if a list of tags has ours, or is `*`. `W/` is ignored: a proxy that compresses writes it."""
        return tags.strip() == "*" or self.tag in re.findall(TAG, tags)

    def require(self, if_match: str | None) -> None:
        """Raise PreconditionFailed if a request's If-Match does not have our tag."""
        if if_match is not None and not self.matches(if_match):
            raise PreconditionFailed(f"If-Match: it has changed; its ETag is {self.tag} now.")


class StationQuery(Struct, forbid_unknown_fields=True):
    q: Search | UnsetType = UNSET
    limit: Limit = 50
    after: Annotated[StationId | UnsetType, Meta(description="list what comes after this id")] = UNSET


class ReadHeaders(Struct):
    if_none_match: Annotated[
        str | None, Meta(description="tags (ETag): answer 304 if the station still has one of them")
    ] = field(default=None, name="If-None-Match")


class ChangeHeaders(Struct):
    if_match: IfMatch | None = field(default=None, name="If-Match")


class StationPage(Struct):
    items: list[Station]
    next: Next


class EventQuery(Struct, forbid_unknown_fields=True):
    station_id: Annotated[StationId | UnsetType, Meta(description="of this station")] = UNSET
    after: Cursor | UnsetType = UNSET
    last_event_id: Cursor | UnsetType = field(default=UNSET, name="lastEventId")


class EventHeaders(Struct):
    last_event_id: Annotated[
        str, Meta(description="the `id` of the event to go on after; without one, the stream starts now")
    ] = field(default="", name="Last-Event-ID")


class NewTransaction(Struct, forbid_unknown_fields=True):
    station_id: StationId


class Transaction(Struct, frozen=True):
    id: TransactionId
    station: Station
    status: Status
    created: Annotated[datetime, Meta(tz=True, examples=["2026-03-28T00:18:13.786299Z"])]
    updated: Annotated[datetime, Meta(tz=True, examples=["2026-03-28T00:18:13.788410Z"])]
    attempts: Annotated[int, Meta(ge=0, description="how often it was asked since its deadline started")]
    asked: Annotated[Time | None, Meta(description="when it was asked last; null: not yet")]
    expires: Annotated[
        Time | None,
        Meta(description="when it expires, or did; null with a verdict, and while its clock stands still"),
    ]


class TransactionQuery(Struct, forbid_unknown_fields=True):
    status: Statuses | UnsetType = UNSET
    station_id: Annotated[StationId | UnsetType, Meta(description="of this station")] = UNSET
    created_from: Annotated[Time | UnsetType, Meta(description="created at this time or later")] = UNSET
    created_to: Annotated[Time | UnsetType, Meta(description="created at this time or earlier")] = UNSET
    limit: Limit = 50
    after: Annotated[UUID | UnsetType, Meta(description="list what is older than this id")] = UNSET


class TransactionPage(Struct):
    items: list[Transaction]
    next: Next


class WaitHeaders(Struct):
    prefer: Prefer = field(default="", name="Prefer")


class TransactionHeaders(WaitHeaders):
    idempotency_key: IdempotencyKey | None = field(default=None, name="Idempotency-Key")


class Unready(Problem, kw_only=True):
    """Why the whole job cannot be done now; the other members are those of Readiness."""

    database: State
    broker: State
    equipment: Equipment


class KeyMalformed(Refusal, status=400):
    """The Idempotency-Key was sent twice, or has a comma."""


class HasTransactions(Refusal, status=409):
    """The station has transactions."""


class NotExpired(Refusal, status=409):
    """The transaction is not EXPIRED."""


class NoStation(Refusal, status=422):
    """There is no such station."""


class KeyUsed(Refusal, status=422):
    """The Idempotency-Key was used before, with another body."""


class NoMoreIds(NotStored):
    """All ids of stations have been used, so nothing was stored."""


class TooManyClients(Unavailable):
    """Too many clients wait or follow events."""


class Health(Struct):
    version: Annotated[str, Meta(examples=["1.0.0"])]
    status: Literal["ok"] = "ok"


class Readiness(Struct):
    database: State
    broker: State
    equipment: Equipment


class NotReady(Unavailable):
    """The whole job cannot be done now. The detail has a sentence for each problem."""

    shape = Unready

    def __init__(self, detail: str, readiness: Readiness):
        super().__init__(detail)
        self.readiness = readiness

    def problem(self) -> Problem:
        return Unready(**asdict(super().problem()), **asdict(self.readiness))


class Question(Struct, frozen=True):
    """Published on EQUIPMENT/VALIDATION."""

    transaction_id: UUID
    station_id: int


class Verdict(Struct, frozen=True):
    """Received on EQUIPMENT/VALIDATION/RESPONSE."""

    transaction_id: UUID
    status: Literal["COMPLETED", "ERROR"]
