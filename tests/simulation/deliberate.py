"""Plants deliberate faults, which the rules must find: deliberate.json has them and events that do it."""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc import locate
from typing import Any

# By what is wrong: what to replace (function, text, other text), the broken rule, and events that break it.
FAULTS = json.loads(Path(__file__).with_suffix(".json").read_text())


@contextmanager
def planted(fault: str) -> Iterator[None]:
    """The product with this fault."""
    functions: dict[str, Any] = {where: locate(where) for where, _, _ in FAULTS[fault]["replace"]}
    sources = {where: inspect.getsource(function) for where, function in functions.items()}
    codes = {where: function.__code__ for where, function in functions.items()}
    for where, text, other in FAULTS[fault]["replace"]:
        if text not in sources[where]:
            raise ValueError(f"{where} has no {text!r} any more")
        sources[where] = sources[where].replace(text, other)
    try:
        for where, function in functions.items():
            found: dict[str, Any] = {}
            source = "if True:\n" * sources[where].startswith(" ") + sources[where]
            exec(source, function.__globals__, found)
            function.__code__ = found[function.__name__].__code__
        yield
    finally:
        for where, function in functions.items():
            function.__code__ = codes[where]
