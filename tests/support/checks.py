"""Questions to a running service: is it alive, is the equipment online, does it settle a transaction?"""

import contextlib
import http.client

from programs import Service

SECRETS = {
    "MQTT_PASSWORD": "Kolibri-71",
    "VALIDATOR_PASSWORD": "Zaunkoenig-72",
    "API_TOKEN": "Mauersegler-73",
}
TOKEN = SECRETS["API_TOKEN"]


def alive(service: Service) -> bool:
    """True once the service has its database; the broker may be away."""
    with contextlib.suppress(OSError):
        return service.get("/healthz").status == 200
    return False


def online(service: Service) -> bool:
    """True once a transaction can be settled."""
    return service.ready() and service.get("/readyz").json["equipment"].get("validator") == "online"


def settles(service: Service, **headers) -> bool:
    """True if a new transaction gets its verdict."""
    assert service.post("/stations", {"description": "Teste"}, **headers).status == 201
    answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=20", **headers)
    return answer.status == 201 and answer.json["status"] in ("COMPLETED", "ERROR")


def ask(
    service: Service, method: str, path: str, headers: list[tuple[str, str]] = (), body: bytes = b""
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send a request with exactly these headers, and follow no redirect."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value.encode("latin1"))
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def broker_says(service: Service) -> str:
    """What /readyz says of the broker; empty without an answer."""
    with contextlib.suppress(OSError):
        return service.get("/readyz").json["broker"]
    return ""
