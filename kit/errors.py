"""Every error that a client can get: a class for each cause, and one shape for all of them (RFC 9457)."""

from http import HTTPStatus
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct

TITLES = {413: "Content Too Large", 414: "URI Too Long"}  # RFC 9110; Python 3.11 has the older names


def title(status: int) -> str:
    """A status's name in RFC 9110."""
    return TITLES.get(status) or HTTPStatus(status).phrase


class Problem(Struct):
    """The body of every error, application/problem+json (RFC 9457)."""

    title: Annotated[str, Meta(examples=["Invalid value"])]
    status: Annotated[int, Meta(ge=400, le=599, examples=[422])]
    detail: Annotated[str, Meta(examples=["body.station_id: Expected `int`, got `str`"])]
    type: Annotated[str, Meta(examples=["/problems/invalid-value"])] = "about:blank"


class Refusal(Exception):
    """Base of all errors that a client can get. Its text is the detail; `headers` go with the answer.

    `quoted` is a text from the client and replaces {} in the detail. It may be a secret that went astray, so
    `logged` is without it. `cause` becomes the problem's `type`.
    """

    title: ClassVar[str] = "Internal Server Error"
    cause: ClassVar[str] = "about:blank"
    status: ClassVar[int] = 500
    headers: ClassVar[dict[str, str]] = {}
    shape: ClassVar[type[Problem]] = Problem  # the body's type; `more` fills the fields that it adds

    def __init__(self, detail: str, quoted: str | None = None, **more: Any):
        super().__init__(detail if quoted is None else detail.replace("{}", quoted))
        self.more = more
        self.logged = detail if quoted is None else detail.replace("{}", "…")

    def problem(self) -> Problem:
        """The answer's body."""
        return self.shape(self.title, self.status, str(self), self.cause, **self.more)


def kind(status: int, name: str, meaning: str, base: type[Refusal] = Refusal, **more: Any) -> type[Refusal]:
    """A class of refusals. `meaning` is for the document; without a name, the status explains it."""
    cause = "/problems/" + name.lower().replace(" ", "-") if name else "about:blank"
    named = {"status": status, "title": name or title(status), "cause": cause, "__doc__": meaning}
    return type(name or title(status), (base,), named | more)


BEARER = {"WWW-Authenticate": "Bearer"}  # RFC 6750, section 3
MalformedBody = kind(400, "Malformed body", "The body is not JSON.")
IncompleteBody = kind(400, "Incomplete body", "The body did not come completely.")
KeyNotTaken = kind(400, "Key not taken", "This route takes no Idempotency-Key.")
Unauthorized = kind(401, "Unauthorized", "The API token is missing or wrong.", headers=BEARER)
NotFound = kind(404, "Not found", "There is no such thing.")
NothingHere = kind(404, "", "The path is unknown.")
MethodNotAllowed = kind(405, "", "The path does not have this method.", headers={"Allow": ""})
PreconditionFailed = kind(412, "Precondition failed", "It no longer has a tag of If-Match; read it again.")
ContentTooLarge = kind(413, "", "The body is too long.")
UnsupportedMediaType = kind(415, "", "The body is not declared as application/json, or it is encoded.")
InvalidValue = kind(422, "Invalid value", "A field is missing, unknown, of the wrong type or out of range.")
Unavailable = kind(503, "Unavailable", "Base of errors that may be gone soon.", headers={"Retry-After": "5"})
NotRunning = kind(503, "Not running", "The service does not run.", Unavailable)
NotRead = kind(503, "Not read", "The database cannot be read.", Unavailable)
NotStored = kind(503, "Not stored", "Nothing was stored; the detail says why.", Unavailable)
Locked = kind(503, "Locked", "Another session has locked a row, so nothing was stored.", NotStored)
OutcomeUnknown = kind(503, "Outcome unknown", "The outcome is unknown; the detail is advice.", Unavailable)
