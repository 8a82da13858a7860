"""API_TOKEN against the real service."""

import json

import pytest

from checks import TOKEN, ask
from programs import Service, free_port, wait_until

API = ("/stations", "/transactions", "/events", "/metrics")


def routes(service: Service) -> list[tuple[str, str, bool]]:
    """Each method and path of the service, with ids filled in, and whether it needs the token."""
    key = "019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57"
    filled = {
        "{name}": "start.js",
        "/stations/{id}": "/stations/1",
        "/transactions/{id}": f"/transactions/{key}",
    }
    found = []
    for path, operations in service.get("/openapi.json").json["paths"].items():
        concrete = path
        for placeholder, value in filled.items():
            concrete = concrete.replace(placeholder, value)
        found += [(method.upper(), concrete, path.startswith(API)) for method in operations]
    assert len(found) > 10
    return found


WRONG = [
    *(
        None,
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer={TOKEN}",
        f"Bearer, {TOKEN}",
        f"Token {TOKEN}",
    ),
    *(f"Bearer {TOKEN[:length]}" for length in (1, 8, len(TOKEN) - 1)),
    *(f"Bearer {TOKEN}{more}" for more in ("x", TOKEN, f" {TOKEN}", ", x", "\xa0", "=")),
    *(
        f"Bearer {token}"
        for token in (TOKEN.lower(), TOKEN.upper(), TOKEN.swapcase(), TOKEN[::-1], TOKEN[1:])
    ),
    *(
        f"Bearer {token}"
        for token in (TOKEN.replace("e", "\xe9"), "\xe2\x82\xac", "\xff" * 14, "*", "null", "'' or 1")
    ),
]


def test_every_route_of_the_api_wants_the_token_and_nothing_like_it(run, broker):
    service = run(Service, broker, API_TOKEN=TOKEN)
    body = b'{"description": "Teste"}'
    for method, path, guarded in routes(service):
        for given in WRONG:
            headers = [
                ("Content-Type", "application/json"),
                *([("Authorization", given)] if given is not None else []),
            ]
            status, answered, text = ask(service, method, path, headers, body)
            if guarded:
                assert (status, answered["WWW-Authenticate"]) == (401, "Bearer"), (method, path, given)
                assert TOKEN.encode() not in text
            else:
                assert status not in (401, 403), (method, path, given)
    assert service.get("/stations", Authorization=f"Bearer {TOKEN}").json == {"items": [], "next": None}
    assert ask(service, "GET", f"/stations?access_token={TOKEN}")[0] == 401
    twice = [("Authorization", "Bearer x"), ("Authorization", f"Bearer {TOKEN}")]
    assert ask(service, "GET", "/stations", twice)[0] in (400, 401)


@pytest.mark.parametrize(
    "token", ["Schlüssel-€", "voilà"]
)  # the second one's last byte is a blank in Latin-1
def test_a_token_may_hold_more_than_ascii(run, broker, token):
    service = run(Service, broker, API_TOKEN=token)
    as_utf_8 = token.encode().decode("latin1")
    for given, expected in (
        (as_utf_8, 200),
        (as_utf_8[:-1], 401),
        (as_utf_8 + "\xa0", 401),
        ("voil\xe0", 401),
    ):
        assert ask(service, "GET", "/stations", [("Authorization", f"Bearer {given}")])[0] == expected


def test_swagger_ui_can_offer_to_authorize(run, broker):
    document = run(Service, broker, API_TOKEN=TOKEN).get("/openapi.json").json
    ((name, scheme),) = document["components"]["securitySchemes"].items()
    assert scheme.items() >= {"type": "http", "scheme": "bearer"}.items()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["security"] == ([{name: []}] if path.startswith(API) else [])
    assert TOKEN not in json.dumps(document)


@pytest.mark.parametrize(
    ("host", "token", "warned"), [("0.0.0.0", "", True), ("0.0.0.0", TOKEN, False), ("127.0.0.1", "", False)]
)
def test_listening_to_other_machines_without_a_token_logs_a_warning(run, broker, host, token, warned):
    port = free_port()
    service = run(Service, broker, port=port, BIND=f"{host}:{port}", API_TOKEN=token)
    wait_until(service.ready, "it has started")
    assert service.stop() == 0  # now all lines are written
    warnings = [line for line in service.said().splitlines() if "WARNING gunicorn" in line]
    assert len(warnings) == warned
    assert all("API_TOKEN" in line and f"BIND={host}:{port}" in line for line in warnings)
