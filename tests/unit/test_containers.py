"""What compose starts: limits that fit, healthchecks, bounded logs, and the variables that are passed on."""

import re

import pytest
import yaml

from kit.settings import OTHERS
from programs import ROOT

OWN = {"BIND", "MQTT_HOST", "MQTT_PORT", "VALIDATOR_ID"}  # of a container, so not passed on


class Loader(yaml.SafeLoader):
    """Reads `!reset` as nothing, as compose does."""


Loader.add_constructor("!reset", lambda *_: None)
FILES = {
    name: yaml.load((ROOT / name).read_text(), Loader)
    for name in ("docker-compose.yml", "deploy/replicas.yml", "deploy/monitoring.yml")
}
MADE = [  # each service where it is made; another file may change it
    pytest.param(service, id=f"{file}:{name}")
    for file, content in FILES.items()
    for name, service in content["services"].items()
    if "image" in service or "build" in service
]


@pytest.mark.parametrize("service", MADE)
def test_every_service_has_a_healthcheck_limits_and_a_log_that_cannot_fill_the_disk(service):
    assert service["healthcheck"]["test"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["restart"] == "unless-stopped"
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert "no-new-privileges:true" in service["security_opt"]
    # Otherwise `up` would keep the image of the last release.
    assert "image" in service or service["pull_policy"] == "build"


def test_compose_passes_on_every_variable_but_those_of_the_container():
    passed = {
        name
        for service in FILES["docker-compose.yml"]["services"].values()
        for name, value in service.get("environment", {}).items()
        if value is None
    }
    documented = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env").read_text(), re.MULTILINE))
    assert passed == documented - OWN - {"POSTGRES_PASSWORD"}


def test_every_name_that_compose_fills_in_may_be_in_the_env_file():
    for name in FILES:
        for variable in re.findall(r"[^$]\$\{(\w+)", (ROOT / name).read_text()):
            assert variable in OTHERS, f"{name}: {variable}"
