"""The commands in the documents: `documents.py TEXT` prints the one for Docker that has this text."""

import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass
class Command:
    """A command as one types it, what it prints, and where it stands."""

    text: str
    shown: str
    page: str
    section: str
    docker: bool  # `make docker-test` runs it, with the others of its block


def commands() -> list[Command]:
    """Each command in a `console` block: the lines after `$` and `>`, and what they print."""
    found = []
    for page in PAGES:
        for part in re.split(r"^(?=#+ )", page.read_text(), flags=re.MULTILINE):
            section = part.partition("\n")[0].lstrip("# ")
            for block in re.findall(r"^ *```console\n(.*?)^ *```", part, re.DOTALL | re.MULTILINE):
                for one in re.split(r"^\$ ", textwrap.dedent(block), flags=re.MULTILINE)[1:]:
                    text, *shown = re.split(r"\n(?!> )", one, maxsplit=1)
                    where = page.name, section, "docker" in block
                    found.append(Command(text.replace("\n> ", "\n"), "".join(shown).strip(), *where))
    return found


if __name__ == "__main__":
    found = {one.text for one in commands() if one.docker and sys.argv[1] in one.text}
    (text,) = found & {sys.argv[1]} or found
    print(text)
