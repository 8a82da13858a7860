"""Every error that a client can get: a class for each cause, and one shape for all of them (RFC 9457)."""

from http import HTTPStatus
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct

INTERNAL = "The service failed; its log says why."
# RFC 9110; Python 3.11 has the older names.
TITLES = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}


class Problem(Struct):
    """The body of every error, application/problem+json (RFC 9457)."""

    title: Annotated[str, Meta(examples=["Unprocessable Content"])]
    status: Annotated[int, Meta(ge=400, le=599, examples=[422])]
    detail: Annotated[str, Meta(examples=["body.station_id: Expected `int`, got `str`"])]
    type: str = "about:blank"


class Refusal(Exception):
    """Raised where a rule is broken. Its text is the detail for the client; `headers` go with the answer.

    `quoted` is a text of the client, which takes the place of {} in the detail. It may be a secret that went
    astray, so `logged` is without it. The first line of a kind's docstring is what the document says of it.
    """

    status: ClassVar[int] = 500
    headers: ClassVar[dict[str, str]] = {}
    sends: ClassVar[tuple[str, ...]] = ()  # names of other headers of the answer
    shape: ClassVar[type[Problem]] = Problem  # what `problem` returns

    def __init__(self, detail: str, quoted: str | None = None):
        super().__init__(detail if quoted is None else detail.replace("{}", quoted))
        self.logged = detail if quoted is None else detail.replace("{}", "…")

    def __init_subclass__(cls, **declared: Any) -> None:
        for name, value in declared.items():
            setattr(cls, name, value)

    def problem(self) -> Problem:
        """The body that tells the client."""
        return Problem(title(self.status), self.status, str(self))


class BadRequest(Refusal, status=400):
    """The body is not JSON or did not come completely, or a header is not taken here."""


class Unauthorized(Refusal, status=401, headers={"WWW-Authenticate": "Bearer"}):  # RFC 6750, section 3
    """The API token is missing or wrong."""


class NotFound(Refusal, status=404):
    """There is no such thing."""


class MethodNotAllowed(Refusal, status=405, sends=("Allow",)):
    """The path does not have this method."""


class Conflict(Refusal, status=409):
    """It is not in a state in which this can be done; the detail says why."""


class PreconditionFailed(Refusal, status=412):
    """It has changed: it no longer has a tag that If-Match names. Read it again first."""


class ContentTooLarge(Refusal, status=413):
    """The body is too long."""


class UnsupportedMediaType(Refusal, status=415):
    """The body is not declared as application/json, or it is encoded."""


class Unprocessable(Refusal, status=422):
    """A field is missing, unknown, of the wrong type or out of its range."""


class Unavailable(Refusal, status=503, headers={"Retry-After": "5"}):
    """The service does not run, or cannot do this now; the detail says why."""


class NotRead(Unavailable):
    """The service does not run, its database cannot be read, or too many requests are being worked on."""


class NotStored(Unavailable):
    """Nothing was stored; the detail says why."""


class OutcomeUnknown(Unavailable):
    """The outcome is unknown; the detail says what to do, which depends on the route."""


def title(status: int) -> str:
    """The name of a status in RFC 9110."""
    return TITLES.get(status) or HTTPStatus(status).phrase
