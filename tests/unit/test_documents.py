"""The documents name every route, variable and package, and only tests that exist."""

import re

from app import app
from documents import commands
from kit.errors import Refusal
from kit.openapi import AGAIN
from programs import ROOT

ROUTES = "/stations /transactions /events /healthz /readyz /swagger/ /openapi.json"
README, HTTP = (ROOT / "README.md").read_text(), (ROOT / "docs/http.md").read_text()


def test_every_route_and_every_variable_is_in_the_readme():
    for route in ROUTES.split():
        assert route in README
    for variable in re.findall(r"^([A-Z_]+)=", (ROOT / ".env").read_text(), re.MULTILINE):
        assert f"`{variable}`" in README


def test_the_proxy_gives_the_same_advice_as_the_service():
    proxy = (ROOT / "deploy/nginx.conf").read_text()
    for route, declared in app.declarations.items():
        assert route.method == "GET" or f"$unknown {declared.unknown}" in proxy
        assert (route.method == "POST") == (declared.unknown != AGAIN)  # only a POST is not idempotent


def kinds(kind=Refusal):
    """All kinds of refusals, with their bases."""
    return [found for one in kind.__subclasses__() for found in (one, *kinds(one))]


def test_each_cause_has_a_type_of_its_own():
    bases = [kind.__name__ for kind in kinds() if (kind.__doc__ or "").startswith("Base of")]
    code = "".join(file.read_text() for file in (*ROOT.glob("*.py"), *ROOT.glob("kit/*.py")))
    assert not re.findall(rf"\b({'|'.join(bases)})\(f?\"", code)
    own = [kind for kind in kinds() if kind.cause != "about:blank" and kind.__name__ not in bases]
    assert len({kind.cause for kind in own}) == len({kind.title for kind in own}) == len(own)
    listed = re.findall(r"^\| (\d+) \| `(/problems/[a-z-]+)` \|", HTTP, re.MULTILINE)
    assert sorted(listed) == sorted((str(kind.status), kind.cause) for kind in own)


def test_every_package_is_in_the_table_of_parts_or_of_tools():
    tables = README + (ROOT / "docs/CONTRIBUTING.md").read_text()
    for requirements in ("requirements.txt", "requirements-dev.txt"):
        text = (ROOT / requirements).read_text()
        for package in re.findall(r"^([A-Za-z]\S*?)(?:\[|==)", text, re.MULTILINE):
            assert package.lower() in tables.lower()


def test_the_readme_has_at_most_130_lines():
    assert len(README.splitlines()) <= 130


def test_each_command_for_docker_is_in_its_tests():
    tests = "".join(file.read_text() for file in ROOT.glob("tests/system/docker-*.sh"))
    texts = re.findall(r"documented '?([^\n']+)", tests + (ROOT / "tests/support/docker.sh").read_text())
    assert len(texts) > 10
    for command in commands():
        assert not command.docker or any(text in command.text for text in texts), command.text


def test_every_test_that_a_document_names_exists():
    found = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name, test in re.findall(
            r"(tests/[\w/]+\.py|\btest_\w+\.py|…(?=::))(?:::(\w+))?", page.read_text()
        ):
            if name != "…":  # the file before
                (file,) = ROOT.glob(name if "/" in name else f"tests/**/{name}")
            found.append(name)
            assert not test or f"def {test}(" in file.read_text(), f"{page.name}: {file.name}::{test}"
    assert len(found) > 10
