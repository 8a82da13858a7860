"""The OpenAPI document agrees with the service."""

import json
import re

import pytest
from openapi_schema_validator import OAS30Validator, oas30_format_checker
from openapi_spec_validator import OpenAPIV30SpecValidator

import app
from calls import UNKNOWN, send, service
from kit.storage import execute


@pytest.fixture
def document(api):
    return api.get("/openapi.json").json


def operations(document) -> dict[tuple[str, str], dict]:
    """Each operation, by method and path."""
    return {
        (method.upper(), path): says
        for path, item in document["paths"].items()
        for method, says in item.items()
    }


# The document


def test_every_route_but_the_pages_is_in_the_document_and_the_other_way_round(document):
    routes = [(route.method, re.sub(r"<(\w+)>", r"{\1}", route.rule)) for route in app.app.routes]
    pages = {("GET", "/"), ("GET", "/static/{name}"), ("GET", "/swagger"), ("GET", "/swagger/{name}")}
    assert sorted(operations(document)) == sorted({*routes} - pages)
    assert pages < {*routes}


def test_the_document_is_valid(document, guarded):
    for valid in (document, guarded.get("/openapi.json").json):
        assert valid["openapi"].startswith("3.0.")
        assert list(OpenAPIV30SpecValidator(valid).iter_errors()) == []


def test_every_component_is_used_and_every_reference_has_one(document):
    referred = set(re.findall(r'"#/components/([^"]+)"', json.dumps(document)))
    there = {f"{kind}/{name}" for kind in ("schemas", "headers") for name in document["components"][kind]}
    assert referred == there


def test_every_header_and_every_refusal_is_explained(document):
    headers = {"401": "WWW-Authenticate", "405": "Allow", "503": "Retry-After"}
    for (_, path), says in operations(document).items():
        assert {"405", "503"} - says["responses"].keys() <= ({"503"} if path == "/openapi.json" else set())
        for status, answer in says["responses"].items():
            assert {"X-Request-ID", headers.get(status, "X-Request-ID")} <= answer["headers"].keys()
    assert all(header["description"] for header in document["components"]["headers"].values())


def test_every_example_is_one(document):
    def examples(node):
        """Each example in a part of the document, with its schema."""
        if isinstance(node, dict):
            if "example" in node:
                rest = {name: node[name] for name in node if name != "example"}
                yield node["example"], node.get("schema", rest)
            yield from ((one["value"], node["schema"]) for one in node.get("examples", {}).values())
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from examples(child)

    found = list(examples(document))
    assert len(found) > 20
    for example, schema in found:
        whole = {"allOf": [schema], "components": document["components"]}
        validator = OAS30Validator(whole, format_checker=oas30_format_checker)
        assert list(validator.iter_errors(example)) == []


# What it documents

STATION, TRANSACTION, LONG = {"description": "Teste"}, {"station_id": 1}, b" " * 65_537
RETRY = f"/transactions/{UNKNOWN}/retry"
GOOD = "/stations /stations?limit=1 /stations/1 /transactions /transactions?limit=1 /events /healthz"
GOOD += " /transactions/counts /transactions/latest?station_id=1,2 /openapi.json /metrics"
BAD = "/stations?limit=0 /stations/x /transactions?status=X /transactions/1 /events?after=x"
BAD += " /transactions/counts?step=0 /transactions/latest"
ANSWERS = [  # in this order: status, method, body, paths
    (201, "POST", STATION, "/stations /stations /stations"),
    (201, "POST", TRANSACTION, "/transactions /transactions"),
    (200, "GET", None, GOOD),
    (503, "GET", None, "/readyz"),
    (200, "PUT", STATION, "/stations/1"),
    (200, "PATCH", STATION, "/stations/1"),
    (200, "PATCH", {}, "/stations/1"),
    (409, "DELETE", None, "/stations/1"),
    (204, "DELETE", None, "/stations/2"),
    (422, "POST", {}, "/stations /transactions /transactions/1/retry"),
    (422, "GET", None, BAD),
    (422, "PUT", {}, "/stations/1"),
    (422, "PATCH", [], "/stations/1"),
    (422, "DELETE", None, "/stations/0"),
    (404, "GET", None, f"/stations/7 /transactions/{UNKNOWN}"),
    (404, "PUT", STATION, "/stations/7"),
    (404, "PATCH", STATION, "/stations/7"),
    (404, "DELETE", None, "/stations/7"),
    (404, "POST", None, RETRY),
]


def provoke_everything(document, provoke):
    """Provoke each documented answer of a working service."""
    for status, method, body, paths in ANSWERS:
        for path in paths.split():
            provoke(status, method, path, body)
    for status in (201, 200):
        key = provoke(status, "POST", "/transactions", TRANSACTION, Idempotency_Key="k").json["id"]
    provoke(200, "GET", f"/transactions/{key}")
    for method in ("PUT", "PATCH", "DELETE"):
        provoke(412, method, "/stations/3", STATION, If_Match='"x"')
    provoke(304, "GET", "/stations/3", If_None_Match="*")
    for status in (409, 200):
        provoke(status, "POST", f"/transactions/{key}/retry")
        execute(service().store.database, """UPDATE "transaction" SET status = 'EXPIRED'""")
    # What every route refuses in the same way.
    cut, coded = {"Content_Length": "9"}, {"Transfer_Encoding": "gzip, chunked"}
    with_body = [(400, b"{", {}), (413, LONG, {}), (415, {}, {"content_type": "text/plain"})]
    without_body = [(400, None, cut), (413, LONG, {}), (415, None, coded)]
    for (method, path), says in operations(document).items():
        path = path.format(id=key if path.startswith("/transactions") else 1)
        for status, body, options in with_body if "requestBody" in says else without_body:
            if method != "GET":
                provoke(status, method, path, body, **options)
        if says["security"]:
            provoke(401, method, path, Authorization="Bearer other")
        provoke(405, "TRACE", path)


def test_every_documented_answer_occurs_and_no_other(guarded):
    """Schemathesis looks at their shapes and headers: tests/system/test_schemathesis.py."""
    document, seen = guarded.get("/openapi.json").json, set()

    def provoke(status: int, method: str, path: str, body=None, **options):
        answer = send(guarded, method, path, body, **{"Authorization": "Bearer open sesame"} | options)
        assert answer.status_int == status, (method, path, answer)
        documented = re.sub(r"(?<=s/)[\da-fx-]+(?=$|/)", "{id}", path.partition("?")[0])
        for known, place in operations(document):
            if place == documented and method in (known, "TRACE"):
                seen.add((known, place, str(answer.status_int)))
        return answer

    provoke_everything(document, provoke)
    documented = {
        (*which, status) for which, says in operations(document).items() for status in says["responses"]
    }
    missing = {which for which in documented - seen if which[2] != "503"}  # test_service.py has those
    assert missing == {("GET", "/readyz", "200")}  # this answer needs a broker
    assert seen <= documented
