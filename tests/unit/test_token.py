"""API_TOKEN: which routes need it, and which values are accepted."""

from itertools import product

import app
from calls import assert_problem, every_path, new_transaction, send, service

GUARDED = ("/stations", "/transactions", "/events", "/metrics")
WRONG = (
    "|Bearer|Bearer |Bearer open|Bearer open sesame!|Bearer OPEN SESAME|open sesame|Bearer old|Bearer *"
    "|Bearer open sesameold sesame|Basic old sesame|Basic open sesame|Token open sesame|Bearer=open sesame"
    "|Bearer, open sesame|Bearer open sesame, x|Bearer open sesame open sesame|Bearer pen sesame|Bearer null"
    "|Bearer emases nepo|Bearer open sesame\xa0|Bearer \xe9|Bearer \xe2\x82\xac|\xff"
)


def test_without_the_token_no_route_of_the_api_answers(guarded):
    sent = [{}, *({"Authorization": wrong} for wrong in WRONG.split("|"))]
    for headers, (path, methods) in product(sent, every_path().items()):
        for method in methods:
            answer = send(guarded, method, path, b"not even JSON", **headers)
            if path.startswith(GUARDED):
                assert_problem(answer, 401, "Unauthorized", "token")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "sesame" not in answer.json["detail"]
            else:
                assert answer.status_int == (503 if path == "/readyz" else 200)
    assert send(guarded, "GET", "/stations?access_token=open+sesame").status_int == 401
    assert_problem(send(guarded, "GET", "/nope"), 404, "Not Found")


def test_with_the_token_every_route_of_the_api_answers(guarded):
    for credentials in ("Bearer open sesame", "bearer open sesame", "BEARER old sesame"):
        headers = {"Authorization": credentials}
        assert send(guarded, "POST", "/stations", {"description": "x"}, **headers).status_int == 201
        assert new_transaction(guarded, **headers)["status"] == "PENDING"
        for path, methods in every_path().items():
            for method in methods:
                assert send(guarded, method, path, **headers).status_int != 401


def test_a_token_may_hold_more_than_ascii(api):
    for token in ("Schlüssel-€", "voilà"):  # the last byte of the second one is a blank in Latin-1
        app.app.use(service(), token)
        sent = f"Bearer {token}".encode().decode("latin1")
        for given, status in ((sent, 200), (sent[:-1], 401), (sent + "\xa0", 401), ("Bearer voil\xe0", 401)):
            assert send(api, "GET", "/stations", Authorization=given).status_int == status


def test_without_a_configured_token_any_header_is_accepted(api):
    for authorization in ("Bearer ", "Bearer x", "\xe9"):
        assert send(api, "GET", "/stations", Authorization=authorization).status_int == 200


def test_the_document_asks_for_the_token_where_the_service_does(api):
    for token, asks in (("", [{"token": []}, {}]), ("open sesame", [{"token": []}])):  # {}: without one
        app.app.use(service(), token)
        document = api.get("/openapi.json").json
        (scheme,) = document["components"]["securitySchemes"].values()
        assert scheme.items() >= {"type": "http", "scheme": "bearer"}.items()
        for path, operations in document["paths"].items():
            for operation in operations.values():
                guards = path.startswith(GUARDED)
                assert operation["security"] == (asks if guards else [])
                assert ("401" in operation["responses"]) is guards
