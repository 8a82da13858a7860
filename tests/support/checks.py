"""Questions to a running service: is it alive, is the equipment online, does it settle a transaction?"""

import contextlib

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


def broker_says(service: Service) -> str:
    """What /readyz says of the broker; empty without an answer."""
    with contextlib.suppress(OSError):
        return service.get("/readyz").json["broker"]
    return ""
