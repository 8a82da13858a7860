"""What is wrong with a value that a client sent, and what would be right, in one sentence."""

import re
from typing import Any

import msgspec
from msgspec import inspect

TIME = "must be a time with its zone, such as 2026-03-28T00:18:13Z (in a URL, write + as %2B)"


def sentence(error: msgspec.ValidationError, kind: Any, place: str) -> str:
    """What msgspec found in a value of this type, after the name of the field in which it found it."""
    reason, _, path = str(error).partition(" - at `$")
    path = re.sub(r"\[\d+\]$", "", path.rstrip("`"))  # an item of a list
    found = at(inspect.type_info(kind), list(filter(None, path.split("."))))
    if unknown := re.match(r"Object contains unknown field `(.*)`", reason, re.DOTALL):
        return f"{place}{path}.{unknown[1]:.40}: is not one of {', '.join(names(found))}"
    if missing := re.match(r"Object missing required field `(.*)`", reason):
        return f"{place}{path}.{missing[1]}: is missing"
    return f"{place}{path}: {better(reason, found)}"


def better(reason: str, kind: inspect.Type | None) -> str:
    """The reason, with what is allowed if msgspec does not say it."""
    if isinstance(kind, inspect.Metadata):
        if "matching regex" in reason and kind.extra and "allowed" in kind.extra:
            return f"must have {kind.extra['allowed']}"
        kind = kind.type
    if isinstance(kind, inspect.ListType):
        kind = kind.item_type
    value = re.match("Invalid enum value (.*)", reason, re.DOTALL)
    if isinstance(kind, inspect.EnumType) and value:
        return f"{value[1]:.40} is not one of {', '.join(str(member.value) for member in kind.cls)}"
    if isinstance(kind, inspect.IntType) and re.match("Expected `int` [<>]", reason):
        return f"Expected `int` from {kind.ge} to {kind.le}"
    return TIME if isinstance(kind, inspect.DateTimeType) else reason


def names(kind: inspect.Type | None) -> list[str]:
    """The names of a Struct's fields."""
    return [field.encode_name for field in kind.fields] if isinstance(kind, inspect.StructType) else []


def at(kind: inspect.Type, path: list[str]) -> inspect.Type | None:
    """The type of what is at this path in a value of this type, if that is one."""
    if isinstance(kind, inspect.Metadata):
        inner = at(kind.type, path)
        return kind if inner is kind.type else inner
    if isinstance(kind, inspect.UnionType):
        kinds = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        return at(kinds[0], path) if len(kinds) == 1 else None
    if not path:
        return kind
    for field in kind.fields if isinstance(kind, inspect.StructType) else ():
        if field.encode_name == path[0]:
            return at(field.type, path[1:])
    return None
