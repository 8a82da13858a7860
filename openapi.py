"""The OpenAPI 3.0 document, built from the routes, their docstrings and `schemas.py`; and Swagger UI to show it."""

import inspect
import os
import re
from http import HTTPStatus
from pathlib import Path
from typing import get_type_hints

import msgspec
from bottle import Bottle, HTTPError, HTTPResponse, Route, static_file
from swagger_ui_bundle import swagger_ui_path

from schemas import Problem
from settings import VERSION

OURS = Path(__file__).with_name("static") / "swagger"
REFERENCE = "#/components/schemas/{name}"
TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}  # of RFC 9110, which Python 3.11 does not know yet
PLACES = ("body", "query", "headers")  # a handler's arguments that are not in its path
ERRORS = {
    400: "The body is not JSON.",
    401: "The API token is missing or wrong.",
    404: "There is no such thing.",
    409: "Something still needs it.",
    413: "The body is too long.",
    415: "The body is not declared as application/json.",
    422: "A field is missing, unknown, of the wrong type or out of its range.",
    503: "Nothing was stored: the database cannot be used now. Or the service is not ready.",
}


def swagger_file(name: str) -> HTTPResponse:
    """A file of Swagger UI: ours if there is one of that name, else the package's; HTTPError 404."""
    for folder in (OURS, swagger_ui_path):
        if name in os.listdir(folder):
            return static_file(name, root=folder)
    raise HTTPError(404, f"There is no file {name}.")


def title(status: int) -> str:
    """What RFC 9110 calls a status."""
    return TITLES.get(status) or HTTPStatus(status).phrase


def document(app: Bottle) -> dict:
    """The document, as what JSON is made of; it asks for a token if the service does."""
    token = bool(app.config.get("api_token"))
    structs, paths = {Problem}, {}
    for route in app.routes:
        path = re.sub(r"<(\w+)>", r"{\1}", route.rule)
        paths.setdefault(path, {})[route.method.lower()] = operation(route, structs, token)
    _, components = msgspec.json.schema_components(structs, ref_template=REFERENCE)
    described = {
        "openapi": "3.0.3",
        "info": {
            "title": "energy2go",
            "version": VERSION,
            "description": "Starts transactions for battery stations and tells what the equipment said.",
        },
        "paths": paths,
        "components": {"schemas": {name: in_3_0(schema) for name, schema in sorted(components.items())}},
    }
    if token:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return described


def operation(route: Route, structs: set, token: bool) -> dict:
    """What the document says of one route; adds to `structs` what its schemas refer to."""
    hints = get_type_hints(route.callback, include_extras=True)
    returned = hints.pop("return", None)
    summary, _, description = inspect.getdoc(route.callback).partition("\n\n")
    status = route.config.get("status", 200)
    guarded = token and route.config.get("token", True)
    # A file's name may be anything; whatever else a handler takes can be wrong.
    errors = {*route.config.get("errors", ()), *({422} if hints.keys() - {"name"} else ()), *({401} if guarded else ())}
    if "body" in hints:
        errors |= {400, 413, 415}
    if route.config.get("token", True) or "healthz readyz".count(route.callback.__name__):
        errors.add(503)
    described = {
        "operationId": route.callback.__name__,
        "tags": [route.rule.split("/")[1] if route.config.get("token", True) else "service"],
        "summary": summary,
        "responses": {str(status): success(route, status, returned, structs, "headers" in hints)}
        | {str(code): failure(code, route.config.get("problem", Problem), structs) for code in sorted(errors)},
    }
    if description:
        described["description"] = description
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schema(hint, structs)}
        for name, hint in hints.items()
        if name not in PLACES
    ]
    parameters += fields(hints.get("query"), "query") + fields(hints.get("headers"), "header")
    if parameters:
        described["parameters"] = parameters
    if "body" in hints:
        content = {"application/json": {"schema": schema(hints["body"], structs)}}
        described["requestBody"] = {"required": True, "content": content}
    if guarded:
        described["security"] = [{"token": []}]
    return described


def success(route: Route, status: int, returned: type, structs: set, waits: bool) -> dict:
    """The answer of a route that does what it was asked."""
    described = {"description": HTTPStatus(status).phrase}
    text = {"schema": {"type": "string"}}
    headers = {"Location": text | {"required": True}} if route.config.get("located") else {}
    headers |= {"Preference-Applied": text} if waits else {}
    if headers:
        described["headers"] = headers
    if "produces" in route.config:
        described["content"] = {route.config["produces"]: text}
    elif returned not in (None, type(None)):
        described["content"] = {"application/json": {"schema": schema(returned, structs)}}
    return described


def failure(status: int, problem: type, structs: set) -> dict:
    """An error, which is a Problem whatever it is, or what extends one."""
    example = {"type": "about:blank", "title": title(status), "status": status, "detail": ERRORS[status]}
    content = {"schema": schema(problem, structs)} | ({"example": example} if problem is Problem else {})
    return {"description": ERRORS[status], "content": {"application/problem+json": content}}


def fields(struct: type | None, place: str) -> list[dict]:
    """The parameters that a Struct of a query or of headers stands for."""
    if struct is None:
        return []
    (_,), components = msgspec.json.schema_components([struct], ref_template=REFERENCE)
    described = []
    for name, full in components[struct.__name__]["properties"].items():
        full = in_3_0(full)
        full.pop("nullable", None)
        parameter = {"name": name, "in": place, "description": full.pop("description", ""), "required": False}
        if place == "query":
            full.pop("example", None)  # Swagger UI would fill it in, and a query for it finds nothing
        described.append(parameter | {"schema": full})
    return described


def schema(hint: type, structs: set) -> dict:
    """The schema of a type; a Struct becomes a reference, and a component."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        structs.add(hint)
        return {"$ref": REFERENCE.format(name=hint.__name__)}
    return in_3_0(msgspec.json.schema(hint))


def in_3_0(node):
    """A schema as OpenAPI 3.0 writes it: `nullable` for a type null, one `example`, no default null, no empty list."""
    if isinstance(node, list):
        return [in_3_0(item) for item in node]
    if not isinstance(node, dict):
        return node
    dropped = ("default", None), ("required", [])
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
