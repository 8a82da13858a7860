"""The README's walk, typed in line by line against the real programs, says what the README says."""

import re
import shlex
import subprocess
from itertools import pairwise

from programs import ROOT, wait_until

README = (ROOT / "README.md").read_text()
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


def steps() -> list[tuple[str, str]]:
    """Each `curl` command of the README with the line that follows it."""
    lines = [line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    return [(line[2:], answer) for line, answer in pairwise([*lines, ""]) if line.startswith("$ curl")]


def comparable(text: str) -> str:
    """Without what differs from run to run: which transaction, when, and what the equipment said."""
    text = ID.sub("ID", re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", text))
    return re.sub("COMPLETED|ERROR", "VERDICT", text).strip()


def test_the_walk_says_what_the_readme_says(service, equipment):
    equipment()
    started = service()
    wait_until(lambda: started.get("/readyz").json["equipment"] == {"validator": "online"}, "the equipment is online")
    ours = {}

    def type_in(command: str) -> str:
        for shown, real in ours.items():
            command = command.replace(shown, real)
        command = command.replace("http://127.0.0.1:8000", started.url)
        return subprocess.run(shlex.split(command), capture_output=True, text=True, check=True).stdout

    assert len(steps()) >= 9
    for command, shown in steps():
        answer = type_in(command)
        if "--json" not in command and "DELETE" not in command:
            # The verdict comes a few milliseconds later.
            wait_until(lambda: comparable(type_in(command)) == comparable(shown), f"{shown} for {command}", 5)  # noqa: B023
        else:
            assert comparable(answer) == comparable(shown), command
        ours |= dict(zip(ID.findall(shown), ID.findall(answer), strict=True))


def test_every_route_and_every_variable_is_in_the_readme():
    for route in ("/stations", "/transactions", "/healthz", "/readyz", "/swagger/", "/openapi.json"):
        assert f"{route}" in README
    for variable in re.findall(r"^([A-Z_]+)=", (ROOT / ".env").read_text(), re.MULTILINE):
        assert f"`{variable}`" in README


def test_every_package_is_in_the_table_of_parts():
    for requirements in ("requirements.txt", "requirements-dev.txt"):
        for package in re.findall(r"^([A-Za-z]\S*?)(?:\[|==)", (ROOT / requirements).read_text(), re.MULTILINE):
            assert package.lower() in README.lower()


def test_it_fits_in_one_sitting():
    assert len(README.splitlines()) <= 200


def test_every_test_that_a_document_names_is_there():
    documents = ("docs/architecture.md", "docs/SECURITY.md", "docs/CONTRIBUTING.md", "docs/scaling.md")
    text = "".join((ROOT / name).read_text() for name in documents)
    named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", text)
    assert len(named) > 10
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text(), f"{file}::{test}"
