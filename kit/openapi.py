"""What the routes declare, and the OpenAPI 3.0 document that is built from it."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from itertools import groupby
from typing import Any, get_type_hints

import msgspec

from kit import errors as kinds
from kit.errors import Problem, Refusal
from kit.requests import JSON

AGAIN = "Send the request again; 404 or 412 may then mean that it was carried out."  # an idempotent one
REFERENCE = "#/components/schemas/{name}"
HEADER = "#/components/headers/"
Json = dict[str, Any]
HEADERS: dict[str, tuple[str, str]] = {  # by name: its type and its meaning
    "Allow": ("string", "The methods that this path has."),
    "Cache-Control": ("string", "`no-store`: each client must ask itself."),
    "ETag": ("string", "A tag that changes with the content, for `If-Match` and `If-None-Match`."),
    "Idempotent-Replayed": ("string", "`true`: this key was used before, so nothing was stored anew."),
    "Link": ("string", 'The URL of the next page, with `rel="next"` (RFC 8288); missing on the last page.'),
    "Location": ("string", "The path under which it can be read."),
    "Preference-Applied": ("string", "The preference that was honoured, such as `wait=5` (RFC 7240)."),
    "Retry-After": ("integer", "After how many seconds to try again."),
    "WWW-Authenticate": ("string", "`Bearer`: the API token is needed (RFC 6750)."),
    "X-Accel-Buffering": ("string", "`no`: a proxy passes each event on at once."),
    "X-Request-ID": ("string", "The id that the request gave, or a new one. The service logs it too."),
}


class Declaration:
    """A route's inputs, outputs and errors, from its handler's signature and docstring and its decorator.

    A handler's arguments `query`, `headers` and `body` are Structs, `service` is the running service, and
    `answer` takes the status and headers of the answer. All other arguments are parts of the path. The
    decorator's options:

    status: of a successful answer. `also`: other success statuses and their headers
    errors: besides those that follow from the inputs
    sends: names of headers of a successful answer
    token: require the API token, if there is one
    unknown: what to do if the outcome is unknown

    A POST without `Idempotency-Key` among its headers refuses it, so no client relies on a key in vain.
    """

    def __init__(
        self,
        handler: Callable[..., Any],
        method: str,
        rule: str,
        status: int = 200,
        errors: tuple[type[Refusal], ...] = (),
        sends: tuple[str, ...] = (),
        also: tuple[tuple[int, tuple[str, ...]], ...] = (),
        media_type: str = JSON,
        token: bool = True,
        unknown: str = "",
    ):
        self.name, self.status, self.sends, self.also = handler.__name__, status, sends, also
        self.media_type, self.token, self.unknown = media_type, token, unknown or AGAIN
        self.summary, _, self.description = (inspect.getdoc(handler) or "").partition("\n\n")
        if not self.summary:
            raise TypeError("has no docstring")
        self.path = hints = get_type_hints(handler, include_extras=True)
        if hints.keys() != {*inspect.signature(handler).parameters, "return"}:
            raise TypeError("every argument and the result need a type")
        self.returns = hints.pop("return")
        self.service, self.answer = (hints.pop(name, None) is not None for name in ("service", "answer"))
        structs = [hints.pop(name, None) for name in ("query", "headers", "body")]
        self.query, self.headers, self.body = structs
        if hints.keys() != set(re.findall(r"<(\w+)>", rule)):
            raise TypeError(f"the arguments {sorted(hints)} are not those of the path")
        if not all(struct is None or issubclass(struct, msgspec.Struct) for struct in structs):
            raise TypeError("query, headers and body must be Structs")
        if strange := {*sends, *(name for _, names in also for name in names)} - HEADERS.keys():
            raise TypeError(f"HEADERS does not describe {sorted(strange)}")
        json = [self.returns] if media_type == JSON else []
        msgspec.json.schema_components([*filter(None, structs), *hints.values(), *json])  # may find none
        names = msgspec.structs.fields(self.headers) if self.headers else ()
        self.header_names = [field.encode_name for field in names]
        self.keyless = method == "POST" and "Idempotency-Key" not in self.header_names
        if method == "POST" and self.service and not unknown:
            raise TypeError("must say what to do if the outcome is unknown")
        refusals = {*errors, *self._implied(method)}
        if not all(issubclass(refusal, Refusal) for refusal in refusals):
            raise TypeError("errors must be Refusals")
        self.errors = sorted(refusals, key=lambda refusal: refusal.status)

    def _implied(self, method: str) -> Iterable[type[Refusal]]:
        """The errors that follow from the inputs."""
        yield kinds.MethodNotAllowed
        if self.path or self.query or self.headers or self.body:
            yield kinds.InvalidValue
        if self.token:
            yield kinds.Unauthorized
        if self.body:
            yield kinds.MalformedBody
        if self.keyless:
            yield kinds.KeyNotTaken
        if self.service:
            yield kinds.NotRunning
        if method != "GET":
            yield from (kinds.IncompleteBody, kinds.ContentTooLarge, kinds.UnsupportedMediaType)
            yield from (kinds.NotStored, kinds.Locked, kinds.OutcomeUnknown)
        elif self.service:
            yield kinds.NotRead


def document(routes: Mapping[Any, Declaration], info: Json, tags: dict[str, str], token: bool) -> Json:
    """The document of an app's routes.

    `tags` say what each group of routes is for. A route belongs to the group that its path begins with, or
    else to the last one. Where the app asks for no token, the document says that a request may have none.
    """
    found: Json = {}
    paths: Json = {}
    for route, declared in routes.items():
        path, group = re.sub(r"<(\w+)>", r"{\1}", route.rule), route.rule.split("/")[1]
        described = operation(declared, found, token)
        described["tags"] = [group if group in tags else list(tags)[-1]]
        paths.setdefault(path, {})[route.method.lower()] = described
    return {
        "openapi": "3.0.3",
        "info": info,
        "servers": [{"url": "/", "description": "the service that this document is from"}],
        "tags": [{"name": name, "description": text} for name, text in tags.items()],
        "paths": paths,
        "components": {
            "schemas": {name: in_3_0(schema) for name, schema in sorted(found.items())},
            "headers": {
                name: {"description": text, "schema": {"type": kind}}
                for name, (kind, text) in HEADERS.items()
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "`API_TOKEN`"}},
        },
    }


def operation(declared: Declaration, found: Json, token: bool) -> Json:
    """What the document says of one route; adds the components that it refers to to `found`."""
    successes = sorted([*declared.also, (declared.status, declared.sends)])
    failures = groupby(declared.errors, lambda refusal: refusal.status)
    responses = {str(status): success(declared, status, sends, found) for status, sends in successes}
    responses |= {str(status): failure(list(same), found) for status, same in failures}
    described = {
        "operationId": declared.name,
        "summary": declared.summary,
        "security": ([{"token": []}] if token else [{"token": []}, {}]) if declared.token else [],
        "responses": responses,
    }
    if declared.description:
        described["description"] = declared.description
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schema(hint, found)}
        for name, hint in declared.path.items()
    ]
    parameters += fields(declared.query, "query") + fields(declared.headers, "header")
    if parameters:
        described["parameters"] = parameters
    if declared.body:
        content = {"application/json": {"schema": schema(declared.body, found)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def success(declared: Declaration, status: int, sends: Sequence[str], found: Json) -> Json:
    """An answer of a route that does what it was asked."""
    described: Json = {"description": HTTPStatus(status).phrase, "headers": headers(sends)}
    if declared.returns is not type(None) and status < 300:
        media_type = declared.media_type
        json = media_type == "application/json"
        content = {"schema": schema(declared.returns, found) if json else {"type": "string"}}
        described["content"] = {media_type.partition(";")[0]: content}
    return described


def failure(refusals: list[type[Refusal]], found: Json) -> Json:
    """The answer of a route that refuses with one status: a Problem, or what extends one."""
    meanings = {one: (one.__doc__ or "").partition("\n")[0] for one in refusals}
    shapes = [schema(shape, found) for shape in dict.fromkeys(refusal.shape for refusal in refusals)]
    content: Json = {"schema": shapes[0] if len(shapes) == 1 else {"anyOf": shapes}}
    content["examples"] = {
        one.__name__: {"value": msgspec.to_builtins(one(meaning).problem())}
        for one, meaning in meanings.items()
        if one.shape is Problem
    }
    sends = headers(name for refusal in refusals for name in refusal.headers)
    content = {"application/problem+json": content}
    return {"description": " ".join(meanings.values()), "headers": sends, "content": content}


def headers(names: Iterable[str]) -> Json:
    """The headers of an answer; every answer has the id of its request."""
    return {name: {"$ref": HEADER + name} for name in sorted({*names, "X-Request-ID"})}


def fields(struct: type[msgspec.Struct] | None, place: str) -> list[Json]:
    """The parameters that the fields of a Struct of a query or of headers stand for."""
    if struct is None:
        return []
    _, components = msgspec.json.schema_components([struct], ref_template=REFERENCE)
    described = []
    for name, full in components[struct.__name__]["properties"].items():
        full = in_3_0(full)
        full.pop("nullable", None)
        parameter = {"name": name, "in": place, "description": full.pop("description", "")}
        if full.get("type") == "array":  # written with commas
            parameter |= {"style": "form", "explode": False}
        if place == "query":
            full.pop("example", None)  # Swagger UI would fill it in, and then find nothing
        described.append(parameter | {"schema": full})
    return described


def schema(hint: Any, found: Json) -> Json:
    """The schema of a type; adds the components that it refers to to `found`."""
    (described,), components = msgspec.json.schema_components([hint], ref_template=REFERENCE)
    found |= components
    return dict(in_3_0(described))


def in_3_0(node: Any) -> Any:
    """A schema as OpenAPI 3.0 writes it: `nullable` for a type null, one `example`, no null default."""
    if isinstance(node, list):
        return [in_3_0(item) for item in node]
    if not isinstance(node, dict):
        return node
    dropped: Any = ("default", None), ("required", [])
    node = {key: in_3_0(value) for key, value in node.items() if (key, value) not in dropped}
    if "enum" in node:
        node.setdefault("type", "string")
    if "examples" in node:
        node["example"] = node.pop("examples")[0]
    if {"type": "null"} in node.get("anyOf", ()):
        (other,) = [choice for choice in node.pop("anyOf") if choice != {"type": "null"}]
        node |= {"allOf": [other]} if "$ref" in other else other
        node["nullable"] = True
    return node
