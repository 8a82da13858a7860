"""The OpenAPI 3.0 document, built from what the routes declare."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from itertools import groupby
from typing import Any

import msgspec
from bottle import Route

from kit.api import Api, Declaration
from kit.errors import Problem, Refusal, title

REFERENCE = "#/components/schemas/{name}"
TEXT = {"schema": {"type": "string"}}
Json = dict[str, Any]


def document(app: Api, info: Json) -> Json:
    """The document of an app's routes, without its pages; it asks for a token if the app does."""
    structs: set[type] = {Problem}
    paths: Json = {}
    for route, declared in app.declarations.items():
        if not declared.options.page:
            path = re.sub(r"<(\w+)>", r"{\1}", route.rule)
            paths.setdefault(path, {})[route.method.lower()] = operation(
                route, declared, structs, bool(app.config["api_token"])
            )
    _, schemas = msgspec.json.schema_components(structs, ref_template=REFERENCE)
    components: Json = {"schemas": {name: in_3_0(schema) for name, schema in sorted(schemas.items())}}
    if app.config["api_token"]:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {"openapi": "3.0.3", "info": info, "paths": paths, "components": components}


def operation(route: Route, declared: Declaration, structs: set[type], token: bool) -> Json:
    """What the document says of one route; adds the Structs that it refers to to `structs`."""
    options = declared.options
    guarded = token and options.token
    refusals = [refusal for refusal in declared.errors if guarded or refusal.status != 401]
    described = {
        "operationId": declared.name,
        "tags": [route.rule.split("/")[1] if options.token else "service"],
        "summary": declared.summary,
        "responses": {
            str(status): success(declared, status, sends, structs)
            for status, sends in sorted([*options.also, (options.status, options.sends)])
        }
        | {
            str(status): failure(list(same), structs)
            for status, same in groupby(refusals, lambda r: r.status)
        },
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
    if guarded:
        described["security"] = [{"token": []}]
    return described


def success(declared: Declaration, status: int, sends: Sequence[str], structs: set[type]) -> Json:
    """An answer of a route that does what it was asked."""
    options = declared.options
    described: Json = {"description": HTTPStatus(status).phrase}
    if sends:
        described["headers"] = {name: dict(TEXT) for name in sends}
    if declared.returns is not type(None) and status < 300:
        json = options.media_type == "application/json"
        content = {"schema": schema(declared.returns, structs)} if json else TEXT
        described["content"] = {options.media_type.partition(";")[0]: content}
    return described


def failure(refusals: list[type[Refusal]], structs: set[type]) -> Json:
    """The answer of a route that refuses with one status: a Problem, or what extends one."""
    meaning = " ".join(refusal.meaning() for refusal in refusals)
    schemas = [schema(shape, structs) for shape in dict.fromkeys(refusal.shape for refusal in refusals)]
    content: Json = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    if refusals[0].shape is Problem:
        status = refusals[0].status
        content["example"] = msgspec.to_builtins(Problem(title(status), status, meaning))
    return {"description": meaning, "content": {"application/problem+json": content}}


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
