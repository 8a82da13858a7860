"""The README's walk-through, typed in line by line, prints what the README shows."""

import re
import shlex
import subprocess
from itertools import pairwise

from programs import ROOT, wait_until

README = (ROOT / "README.md").read_text()
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


def steps() -> list[tuple[str, str]]:
    """Each `curl` command of the README with the line that follows it."""
    lines = [
        line
        for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
        for line in block.splitlines()
    ]
    return [
        (line[2:], answer)
        for line, answer in pairwise([*lines, ""])
        if line.startswith("$ curl") and " -N " not in line
    ]


def comparable(text: str) -> str:
    """The text without what differs between runs: ids, times and verdicts."""
    text = re.sub('"(reason|equipment)":"[^"]+"', r'"\1":"TEXT"', text)
    text = re.sub(r"(?m)^id: \d+-[0-9a-f]{32}$", "id: CURSOR", text)
    text = ID.sub("ID", re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", text))
    return re.sub("COMPLETED|ERROR", "VERDICT", text).strip()


def test_the_walk_says_what_the_readme_says(service, equipment):
    equipment()
    started = service()
    wait_until(
        lambda: started.get("/readyz").json["equipment"] == {"validator": "online"},
        "the equipment is online",
    )
    ours = {}

    def type_in(command: str) -> str:
        for shown, real in ours.items():
            command = command.replace(shown, real)
        command = command.replace("http://127.0.0.1:8000", started.url)
        return subprocess.run(shlex.split(command), capture_output=True, text=True, check=True).stdout

    assert len(steps()) >= 8
    for command, shown in steps():
        answer = type_in(command)
        if "--json" not in command and "DELETE" not in command:
            # The verdict comes a few milliseconds later.
            wait_until(
                lambda c=command, s=shown: comparable(type_in(c)) == comparable(s),
                f"{shown} for {command}",
                5,
            )
        else:
            assert comparable(answer) == comparable(shown), command
        ours |= dict(zip(ID.findall(shown), ID.findall(answer), strict=True))


def test_what_follows_events_says_what_the_readme_says(running):
    started = running()
    (shown,) = re.findall(r"```console\n\$ (curl -N [^\n]*)\n(.*?)\n```", README, re.DOTALL)
    command, text = shown
    command = command.replace("http://127.0.0.1:8000", started.url)
    with subprocess.Popen([*shlex.split(command), "-s"], stdout=subprocess.PIPE, text=True) as curl:
        try:
            first = "".join(iter(curl.stdout.readline, "\n"))
            started.post("/transactions", {"station_id": 1})
            event = "event: ready"
            while "event: ready" in event or '"PENDING"' in event:  # the README leaves these out
                event = "".join(iter(curl.stdout.readline, "\n"))
        finally:
            curl.kill()
    assert comparable(f"{first}\n{event}") == comparable(text)
