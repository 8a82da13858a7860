"""Every error that a client can get: a class for each cause, and one shape for all of them (RFC 9457)."""

import re
from http import HTTPStatus
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct

TITLES = {413: "Content Too Large", 414: "URI Too Long"}  # RFC 9110; Python 3.11 has the older names


def title(status: int) -> str:
    """The name of a status in RFC 9110."""
    return TITLES.get(status) or HTTPStatus(status).phrase


class Problem(Struct):
    """The body of every error, application/problem+json (RFC 9457)."""

    title: Annotated[str, Meta(examples=["Invalid value"])]
    status: Annotated[int, Meta(ge=400, le=599, examples=[422])]
    detail: Annotated[str, Meta(examples=["body.station_id: Expected `int`, got `str`"])]
    type: Annotated[str, Meta(examples=["/problems/invalid-value"])] = "about:blank"


class Refusal(Exception):
    """Base of all errors that a client can get. Its text is the detail; `headers` go with the answer.

    The name of a subclass becomes the title and the type of its problem; if it is `plain`, its status does.
    `quoted` is a text from the client and replaces {} in the detail. It may be a secret that went astray, so
    `logged` is without it. The docstring of a subclass is its description in the document.
    """

    title: ClassVar[str] = "Internal Server Error"
    cause: ClassVar[str] = "about:blank"  # the type of its problem
    status: ClassVar[int] = 500
    headers: ClassVar[dict[str, str]] = {}
    shape: ClassVar[type[Problem]] = Problem  # the type of its body; `more` fills the fields that it adds

    def __init__(self, detail: str, quoted: str | None = None, **more: Any):
        super().__init__(detail if quoted is None else detail.replace("{}", quoted))
        self.more = more
        self.logged = detail if quoted is None else detail.replace("{}", "…")

    def __init_subclass__(cls, plain: bool = False, **declared: Any) -> None:
        for name, value in declared.items():
            setattr(cls, name, value)
        words = re.sub("(?<!^)[A-Z]", r" \g<0>", cls.__name__).lower()
        cls.title = title(cls.status) if plain else words.capitalize()
        cls.cause = "about:blank" if plain else "/problems/" + words.replace(" ", "-")

    def problem(self) -> Problem:
        """The body of the answer."""
        return self.shape(self.title, self.status, str(self), self.cause, **self.more)


class MalformedBody(Refusal, status=400):
    """The body is not JSON."""


class IncompleteBody(Refusal, status=400):
    """The body did not come completely."""


class KeyNotTaken(Refusal, status=400):
    """This route takes no Idempotency-Key."""


class Unauthorized(Refusal, status=401, headers={"WWW-Authenticate": "Bearer"}):  # RFC 6750, section 3
    """The API token is missing or wrong."""


class NotFound(Refusal, status=404):
    """There is no such thing."""


class NothingHere(Refusal, status=404, plain=True):
    """The path is unknown."""


class MethodNotAllowed(Refusal, status=405, headers={"Allow": ""}, plain=True):  # `kit.api` fills it in
    """The path does not have this method."""


class PreconditionFailed(Refusal, status=412):
    """It has changed: it no longer has a tag that If-Match names. Read it again first."""


class ContentTooLarge(Refusal, status=413, plain=True):
    """The body is too long."""


class UnsupportedMediaType(Refusal, status=415, plain=True):
    """The body is not declared as application/json, or it is encoded."""


class InvalidValue(Refusal, status=422):
    """A field is missing, unknown, of the wrong type or out of its range."""


class Unavailable(Refusal, status=503, headers={"Retry-After": "5"}):
    """Base of errors that may be gone soon."""


class NotRunning(Unavailable):
    """The service does not run."""


class NotRead(Unavailable):
    """The database cannot be read."""


class NotStored(Unavailable):
    """Nothing was stored; the detail says why."""


class Locked(NotStored):
    """Another database session has locked a row, so nothing was stored."""


class OutcomeUnknown(Unavailable):
    """The outcome is unknown; the detail says what to do, which depends on the route."""
