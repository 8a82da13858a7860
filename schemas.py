"""Everything that crosses a boundary: HTTP bodies, queries and headers, MQTT payloads."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType, field

from kit.errors import Problem


class Status(StrEnum):
    """PENDING until a verdict (COMPLETED, ERROR) or until the timeout (EXPIRED)."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    ERROR = "ERROR"
    EXPIRED = "EXPIRED"


StationId = Annotated[int, Meta(ge=1, le=2**31 - 1, examples=[1])]
TransactionId = Annotated[
    UUID, Meta(description="UUIDv7", examples=["019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57"])
]
NO_NUL = r"^[^\u0000]*$"  # the one character that PostgreSQL cannot store in a text
NOT_BLANK = r"^\s*[^\s\u0000][^\u0000]*$"
Description = Annotated[str, Meta(min_length=1, max_length=255, pattern=NOT_BLANK, examples=["Teste"])]
Limit = Annotated[int, Meta(ge=1, le=200, description="items on a page", examples=[20])]
Prefer = Annotated[
    str,
    Meta(
        description="`wait=N` holds the answer until the verdict, N seconds at most (RFC 7240)",
        examples=["wait=5"],
    ),
]
IdempotencyKey = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=255,
        pattern=NO_NUL,
        description="the same key and body get the first answer again; it has no comma",
    ),
]
State = Annotated[str, Meta(description="`ok`, or what is wrong with it")]
Equipment = Annotated[
    dict[str, str] | Literal["unknown"],
    Meta(description="what each equipment said last", examples=[{"validator-1": "online"}]),
]
Next = Annotated[str | None, Meta(description="the next page; null on the last one")]


class NewStation(Struct, forbid_unknown_fields=True):
    description: Description


class StationChange(Struct, forbid_unknown_fields=True):
    description: Description | UnsetType = UNSET


class Station(Struct, frozen=True):
    id: StationId
    description: Description


class StationQuery(Struct, forbid_unknown_fields=True):
    limit: Limit = 50
    after: Annotated[StationId | UnsetType, Meta(description="list what comes after this id")] = UNSET


class StationPage(Struct):
    items: list[Station]
    next: Next


class EventQuery(Struct, forbid_unknown_fields=True):
    station_id: StationId | UnsetType = UNSET
    after: (
        Annotated[str, Meta(min_length=1, description="the same as `Last-Event-ID`, which goes first")]
        | UnsetType
    ) = UNSET


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


class TransactionQuery(Struct, forbid_unknown_fields=True):
    status: Status | UnsetType = UNSET
    station_id: StationId | UnsetType = UNSET
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


class Health(Struct):
    version: Annotated[str, Meta(examples=["1.0.0"])]
    status: Literal["ok"] = "ok"


class Readiness(Struct):
    database: State
    broker: State
    equipment: Equipment


class Question(Struct, frozen=True):
    """Published on EQUIPMENT/VALIDATION."""

    transaction_id: UUID
    station_id: int


class Verdict(Struct, frozen=True):
    """Received on EQUIPMENT/VALIDATION/RESPONSE."""

    transaction_id: UUID
    status: Literal["COMPLETED", "ERROR"]
