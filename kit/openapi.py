"""The OpenAPI 3.0 document, built from what the routes declare."""

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from itertools import groupby
from typing import Any

import msgspec

from kit.api import Api, Declaration
from kit.errors import Problem, Refusal, Unprocessable, title
from kit.headers import ANSWERS

REFERENCE = "#/components/schemas/{name}"
HEADER = "#/components/headers/"
PLACES = "path", "query", "headers", "body"
Json = dict[str, Any]


def document(app: Api, info: Json, tags: dict[str, str]) -> Json:
    """The document of an app's routes, without its pages.

    `tags` say what each group of routes is for. A route belongs to the group that its path begins with, or
    else to the last one. Where the app asks for no token, the document says that a request may have none.
    """
    structs: set[type] = {Problem}
    paths: Json = {}
    for route, declared in app.declarations.items():
        if not declared.page:
            path, group = re.sub(r"<(\w+)>", r"{\1}", route.rule), route.rule.split("/")[1]
            described = operation(declared, structs, bool(app.config["api_token"]))
            described["tags"] = [group if group in tags else list(tags)[-1]]
            paths.setdefault(path, {})[route.method.lower()] = described
    _, schemas = msgspec.json.schema_components(structs, ref_template=REFERENCE)
    return {
        "openapi": "3.0.3",
        "info": info,
        "servers": [{"url": "/", "description": "the service that this document is from"}],
        "tags": [{"name": name, "description": text} for name, text in tags.items()],
        "paths": paths,
        "components": {
            "schemas": {name: in_3_0(schema) for name, schema in sorted(schemas.items())},
            "headers": {
                name: {"description": text, "schema": {"type": kind}}
                for name, (kind, text) in ANSWERS.items()
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "`API_TOKEN`"}},
        },
    }


def operation(declared: Declaration, structs: set[type], token: bool) -> Json:
    """What the document says of one route; adds the Structs that it refers to to `structs`."""
    successes = sorted([*declared.also, (declared.status, declared.sends)])
    failures = groupby(declared.errors, lambda refusal: refusal.status)
    responses = {str(status): success(declared, status, sends, structs) for status, sends in successes}
    responses |= {str(status): failure(declared, list(same), structs) for status, same in failures}
    described = {
        "operationId": declared.name,
        "summary": declared.summary,
        "security": ([{"token": []}] if token else [{"token": []}, {}]) if declared.token else [],
        "responses": responses,
    }
    if declared.description:
        described["description"] = declared.description
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schema(hint, structs)}
        for name, hint in declared.path.items()
    ]
    parameters += fields(declared.query, "query") + fields(declared.headers, "header")
    if parameters:
        described["parameters"] = parameters
    if declared.body:
        content = {"application/json": {"schema": schema(declared.body, structs)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def success(declared: Declaration, status: int, sends: Sequence[str], structs: set[type]) -> Json:
    """An answer of a route that does what it was asked."""
    described: Json = {"description": HTTPStatus(status).phrase, "headers": headers(sends)}
    if declared.returns is not type(None) and status < 300:
        media_type = declared.media_type
        json = media_type == "application/json"
        content = {"schema": schema(declared.returns, structs) if json else {"type": "string"}}
        described["content"] = {media_type.partition(";")[0]: content}
    return described


def failure(declared: Declaration, refusals: list[type[Refusal]], structs: set[type]) -> Json:
    """The answer of a route that refuses with one status: a Problem, or what extends one."""
    meaning = " ".join(
        values(declared) if one is Unprocessable else (one.__doc__ or "").partition("\n")[0]
        for one in refusals
    )
    schemas = [schema(shape, structs) for shape in dict.fromkeys(refusal.shape for refusal in refusals)]
    content: Json = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    if refusals[0].shape is Problem:
        status = refusals[0].status
        content["example"] = msgspec.to_builtins(Problem(title(status), status, meaning))
    sends = [name for refusal in refusals for name in (*refusal.headers, *refusal.sends)]
    return {
        "description": meaning,
        "headers": headers(sends),
        "content": {"application/problem+json": content},
    }


def values(declared: Declaration) -> str:
    """What 422 means for the values that a route takes."""
    taken = declared.path, declared.query, declared.headers, declared.body
    places = " or the ".join(place for place, what in zip(PLACES, taken, strict=True) if what)
    return f"A value in the {places} is missing, unknown, of the wrong type or out of its range."


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
        parameter = {
            "name": name,
            "in": place,
            "description": full.pop("description", ""),
            "required": False,
        }
        if full.get("type") == "array":  # written with commas
            parameter |= {"style": "form", "explode": False}
        if place == "query":
            full.pop("example", None)  # Swagger UI would fill it in, and then find nothing
        described.append(parameter | {"schema": full})
    return described


def schema(hint: Any, structs: set[type]) -> Json:
    """The schema of a type; that of a Struct is a reference to a component."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        structs.add(hint)
        return {"$ref": REFERENCE.format(name=hint.__name__)}
    return dict(in_3_0(msgspec.json.schema(hint)))


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
