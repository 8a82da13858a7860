"""Imports between our files point one way, down the list that architecture.md draws."""

import ast
import re

from programs import ROOT

ORDER = ["gunicorn.conf", "app", "mqtt_listener", "ledger", "batch", "events", "models", "schemas", "kit"]


def imported(text: str) -> set[str]:
    """The top-level modules that a file imports, also inside its functions, but not only for its types."""
    text = re.sub(r"(?m)^if TYPE_CHECKING:.*\n( +.*\n)+", "", text)
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


def test_imports_point_one_way():
    assert {path.stem for path in ROOT.glob("*.py")} == {*ORDER} - {"kit"}
    for path in [*ROOT.glob("*.py"), *ROOT.glob("kit/*.py")]:
        place = ORDER.index("kit" if path.parent.name == "kit" else path.stem)
        below = ORDER[place:] if path.parent.name == "kit" else ORDER[place + 1 :]
        assert imported(path.read_text()) & {*ORDER} <= {*below}, path
