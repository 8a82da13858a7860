"""X-Request-ID in the log of the real service, and through the real nginx."""

import pytest

import raw
from checks import ask
from programs import Nginx, wait_until


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_lines_of_a_request_have_its_id(service, log_format):
    started = service(LOG_LEVEL="DEBUG", LOG_FORMAT=log_format)
    started.post("/stations", {"description": "Teste"})
    started.post("/transactions", {"station_id": 1}, X_Request_ID="mine-1")
    started.get("/stations")
    mark = '"request_id": "mine-1"' if log_format == "json" else "request=mine-1"

    def lines():
        return [line for line in started.said().splitlines() if mark in line]

    wait_until(lambda: len(lines()) == 2, "the line of the ledger and that of the access are written")
    assert any("is stored" in line for line in lines())
    assert any("POST /transactions" in line for line in lines())
    assert not any("GET /stations" in line for line in lines())


def test_what_is_not_http_has_an_id_too_and_not_that_of_an_earlier_request(service):
    started = service()
    for _ in range(40):
        started.get("/stations", X_Request_ID="earlier")
    with raw.connect(started.port) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head = raw.answer(connection).partition(b"\r\n\r\n")[0].decode()
    (line,) = [line for line in head.splitlines() if line.startswith("X-Request-ID: ")]
    wait_until(lambda: f"request={line.partition(' ')[2]}" in started.said(), "the warning has it")


def test_the_proxy_passes_an_id_on_and_gives_one(service, programs):
    started = service(LOG_LEVEL="DEBUG")
    programs.append(Nginx([started]))
    proxy = programs[-1].start()
    assert proxy.get("/stations", X_Request_ID="mine").headers["X-Request-ID"] == "mine"
    replaced = proxy.get("/stations", X_Request_ID="a b").headers["X-Request-ID"]
    assert "request=mine" in started.said()
    wait_until(lambda: f"request={replaced}" in started.said(), "the service has that of the proxy")
    for given in ("mine", "a b"):
        _, headers, _ = ask(proxy, "GET", "/problem", [("X-Request-ID", given)])
        assert (headers["X-Request-ID"] == "mine") is (given == "mine")
        assert len(headers["X-Request-ID"]) in (4, 32)
