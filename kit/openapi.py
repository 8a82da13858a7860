"""The declarations of routes, and the OpenAPI 3.0 document that is built from them."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from itertools import groupby
from typing import Any, get_type_hints

import msgspec

from kit import errors as kinds
from kit.requests import JSON, rules

AGAIN = "Send the request again; 404 or 412 may then mean that it was carried out."  # an idempotent one
CHANGE = [kinds.IncompleteBody, kinds.ContentTooLarge, kinds.UnsupportedMediaType]
CHANGE += [kinds.NotStored, kinds.Locked, kinds.OutcomeUnknown]
REFERENCE = "#/components/schemas/{name}"
TOKEN = {"type": "http", "scheme": "bearer", "description": "`API_TOKEN`, or `API_TOKEN_OLD`"}
Json = dict[str, Any]
HEADERS = {
    "Allow": "The methods that this path has.",
    "Cache-Control": "`no-store`: the answer must not be cached.",
    "ETag": "A tag that changes with the content, for `If-Match` and `If-None-Match`.",
    "Idempotent-Replayed": "`true`: this key was used before, so nothing new was stored.",
    "Link": 'The URL of the next page, with `rel="next"` (RFC 8288); missing on the last page.',
    "Location": "The path of the new resource.",
    "Preference-Applied": "The preference that was honoured, such as `wait=5` (RFC 7240).",
    "Retry-After": "The number of seconds to wait before the next attempt.",
    "WWW-Authenticate": "`Bearer`: the API token is needed (RFC 6750).",
    "X-Accel-Buffering": "`no`: a proxy passes each event on at once.",
    "X-Request-ID": "The id from the request, or a new one. It is in the service's log, too.",
}


class Declaration:
    """A route's inputs, outputs and errors, from its handler's signature and docstring and its decorator.

    A handler's arguments `query`, `headers` and `body` are Structs, `service` is the running service, and
    `answer` takes the status and headers of the answer. All other arguments are parts of the path. The
    decorator's options:

    answers: the status of each success and its headers; the first one is the default
    errors: in addition to the inputs' own
    data: the data type in a stream's events
    token: require the API token, if there is one
    unknown: advice when the outcome is unknown

    A POST without `Idempotency-Key` among its headers refuses it, so no client relies on a key in vain.
    """

    def __init__(
        self,
        handler: Callable[..., Any],
        method: str,
        rule: str,
        answers: tuple[tuple[Any, ...], ...] = ((200,),),
        errors: tuple[type[kinds.Refusal], ...] = (),
        media_type: str = JSON,
        data: Any = None,
        token: bool = True,
        unknown: str = AGAIN,
    ):
        self.name, self.media_type, self.data = handler.__name__, media_type, data
        self.status, self.token, self.unknown = answers[0][0], token, unknown
        self.summary, _, self.description = (inspect.getdoc(handler) or "").partition("\n\n")
        if not self.summary:
            raise TypeError("has no docstring")
        self.path = hints = get_type_hints(handler, include_extras=True)
        if hints.keys() != {*inspect.signature(handler).parameters, "return"}:
            raise TypeError("every argument and the result need a type")
        self.returns = hints.pop("return")
        self.service, self.answer = (hints.pop(name, None) is not None for name in ("service", "answer"))
        self.structs = {name: hints.pop(name) for name in ("query", "headers", "body") if name in hints}
        if hints.keys() != set(re.findall(r"<(\w+)>", rule)):
            raise TypeError(f"the path has other parts than the arguments {sorted(hints)}")
        if not all(issubclass(struct, msgspec.Struct) for struct in self.structs.values()):
            raise TypeError("query, headers and body must be Structs")
        json = [self.returns] if media_type == JSON else []
        msgspec.json.schema_components([*self.structs.values(), *hints.values(), *json])  # may find none
        self.headers = rules(self.structs["headers"]) if "headers" in self.structs else {}
        waits = ("Preference-Applied", "Retry-After") if "Prefer" in self.headers else ()
        self.answers = [(*answer, *waits) for answer in answers]
        self.keyless = method == "POST" and "Idempotency-Key" not in self.headers
        refusals = {*errors, *self._implied(method != "GET")}
        if not all(issubclass(refusal, kinds.Refusal) for refusal in refusals):
            raise TypeError("errors must be Refusals")
        self.errors = sorted(refusals, key=lambda refusal: refusal.status)

    def _implied(self, changes: bool) -> list[type[kinds.Refusal]]:
        """The errors that follow from the inputs."""
        occurs: dict[type[kinds.Refusal], Any] = {
            kinds.MethodNotAllowed: True,
            kinds.InvalidValue: self.path or self.structs,
            kinds.Unauthorized: self.token,
            kinds.MalformedBody: "body" in self.structs,
            kinds.KeyNotTaken: self.keyless,
            kinds.NotFound: self.path,
            kinds.PreconditionFailed: "If-Match" in self.headers,
            kinds.NotRunning: self.service,
            kinds.NotRead: self.service and not changes,
        }
        return [kind for kind, reason in occurs.items() if reason] + (CHANGE if changes else [])


def document(routes: Mapping[Any, Declaration], info: Json, tags: dict[str, str], token: bool) -> Json:
    """The document of an app's routes.

    `tags` describes each group of routes. A route belongs to the group that its path begins with, or else to
    the last one. Without a `token`, the document makes authentication optional.
    """
    found: Json = {}
    paths: Json = {}
    for route, declared in routes.items():
        path, group = re.sub(r"<(\w+)>", r"{\1}", route.rule), route.rule.split("/")[1]
        described = operation(declared, found)
        described["tags"] = [group if group in tags else list(tags)[-1]]
        described["security"] = ([{"token": []}] if token else [{"token": []}, {}]) if declared.token else []
        paths.setdefault(path, {})[route.method.lower()] = described
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()}
    headers["Retry-After"]["schema"] = {"type": "integer"}
    return {
        "openapi": "3.0.3",
        "info": info,
        "servers": [{"url": "/", "description": "this service"}],
        "tags": [{"name": name, "description": text} for name, text in tags.items()],
        "paths": paths,
        "components": {
            "schemas": {name: in_3_0(schema) for name, schema in sorted(found.items())},
            "headers": headers,
            "securitySchemes": {"token": TOKEN},
        },
    }


def operation(declared: Declaration, found: Json) -> Json:
    """A route in the document; the components that it needs go to `found`."""
    responses = {str(status): success(declared, status, names, found) for status, *names in declared.answers}
    for status, same in groupby(declared.errors, lambda refusal: refusal.status):
        responses[str(status)] = failure(list(same), found)
    path = {"in": "path", "required": True}
    taken = [path | {"name": name, "schema": schema(hint, found)} for name, hint in declared.path.items()]
    for name, place in (("query", "query"), ("headers", "header")):
        taken += parameters(declared.structs[name], place) if name in declared.structs else []
    described: Json = {
        "operationId": declared.name,
        "summary": declared.summary,
        "description": declared.description,
        "parameters": taken,
        "responses": responses,
    }
    if body := declared.structs.get("body"):
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": schema(body, found)}}}
    return described


def success(declared: Declaration, status: int, names: list[str], found: Json) -> Json:
    """A route's successful answer."""
    described = {"description": HTTPStatus(status).phrase, "headers": headers(names)}
    if declared.returns is not type(None) and status < 300:
        text = declared.media_type != JSON
        content = {"schema": {"type": "string"} if text else schema(declared.returns, found)}
        if declared.data:
            fields = {name: {"type": "string"} for name in ("event", "id")}
            fields["data"] = schema(declared.data, found)
            content = {"schema": {"type": "object", "properties": fields}}
        described["content"] = {declared.media_type.partition(";")[0]: content}
    return described


def failure(refusals: list[type[kinds.Refusal]], found: Json) -> Json:
    """The answer for refusals with the same status."""
    shapes = [schema(shape, found) for shape in dict.fromkeys(refusal.shape for refusal in refusals)]
    content: Json = {"schema": shapes[0] if len(shapes) == 1 else {"anyOf": shapes}}
    content["examples"] = {
        one.title: {"value": msgspec.to_builtins(one(str(one.__doc__)).problem())}
        for one in refusals
        if one.shape is kinds.Problem
    }
    return {
        "description": " ".join(str(one.__doc__) for one in refusals),
        "headers": headers(name for one in refusals for name in one.headers),
        "content": {"application/problem+json": content},
    }


def headers(names: Iterable[str]) -> Json:
    """An answer's headers; every answer has its request's id."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in sorted({*names, "X-Request-ID"})}


def parameters(struct: type[msgspec.Struct], place: str) -> list[Json]:
    """A Struct's fields as query or header parameters."""
    _, components = msgspec.json.schema_components([struct], ref_template=REFERENCE)
    described = []
    needed = components[struct.__name__].get("required", ())
    for name, full in in_3_0(components[struct.__name__]["properties"]).items():
        full.pop("nullable", None)
        parameter = {"name": name, "in": place, "required": name in needed}
        parameter["description"] = full.pop("description", "")
        if full.get("type") == "array":  # written with commas
            parameter |= {"style": "form", "explode": False}
        if place == "query":
            full.pop("example", None)  # Swagger UI would fill it in, and find no match
        described.append(parameter | {"schema": full})
    return described


def schema(hint: Any, found: Json) -> Json:
    """A type's schema; the components that it needs go to `found`."""
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
