"""Every error that a client can get: a class for each status, and one shape for all of them (RFC 9457)."""

from http import HTTPStatus
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

INTERNAL = "The service failed; its log says why."
TITLES = {
    413: "Content Too Large",
    414: "URI Too Long",
    422: "Unprocessable Content",
}  # RFC 9110; Python 3.11 has the older names


class Problem(Struct):
    """The body of every error, application/problem+json (RFC 9457)."""

    title: Annotated[str, Meta(examples=["Unprocessable Content"])]
    status: Annotated[int, Meta(ge=400, le=599, examples=[422])]
    detail: Annotated[str, Meta(examples=["body.station_id: Expected `int`, got `str`"])]
    type: str = "about:blank"


class Refusal(Exception):
    """Raised where a rule is broken. Its text is the detail for the client; `headers` go with the answer."""

    status: ClassVar[int] = 500
    headers: ClassVar[dict[str, str]] = {}
    sends: ClassVar[tuple[str, ...]] = ()  # names of other headers of the answer
    shape: ClassVar[type[Problem]] = Problem  # what `problem` returns

    def problem(self) -> Problem:
        """The body that tells the client."""
        return Problem(title(self.status), self.status, str(self))

    @classmethod
    def meaning(cls) -> str:
        """What this error means, for the document: the first line of the docstring."""
        return (cls.__doc__ or "").partition("\n")[0]


class BadRequest(Refusal):
    """The body is not JSON."""

    status = 400


class Unauthorized(Refusal):
    """The API token is missing or wrong."""

    status = 401
    headers: ClassVar = {"WWW-Authenticate": "Bearer"}  # RFC 6750, section 3


class NotFound(Refusal):
    """There is no such thing."""

    status = 404


class MethodNotAllowed(Refusal):
    """The path does not have this method."""

    status = 405
    sends = ("Allow",)


class Conflict(Refusal):
    """It is not in a state in which this can be done; the detail says why."""

    status = 409


class PreconditionFailed(Refusal):
    """It has changed: it no longer has a tag that If-Match names. Read it again first."""

    status = 412


class ContentTooLarge(Refusal):
    """The body is too long."""

    status = 413


class UnsupportedMediaType(Refusal):
    """The body is not declared as application/json."""

    status = 415


class Unprocessable(Refusal):
    """A field is missing, unknown, of the wrong type or out of its range."""

    status = 422


class Unavailable(Refusal):
    """The service does not run, or cannot do this now; the detail says why."""

    status = 503
    headers: ClassVar = {"Retry-After": "5"}  # seconds


class NotRead(Unavailable):
    """The service does not run, its database cannot be read, or too many requests are being worked on."""


class NotStored(Unavailable):
    """Nothing was stored, or the outcome is unknown: the detail says which, and why."""


def title(status: int) -> str:
    """The name of a status in RFC 9110."""
    return TITLES.get(status) or HTTPStatus(status).phrase
