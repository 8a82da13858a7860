"""Lists of rows, page by page. A page begins where the last one ended, so each costs the same."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import msgspec


def newest(table: str, equal: Sequence[tuple[str, Any]], lowest: UUID, bound: UUID) -> tuple[str, list[Any]]:
    """The SELECT of the newest rows of a table with these values in these columns, and an id in this range.

    The last of these columns and the id are compared as a pair. For `status = ? AND id < ?` PostgreSQL may
    read the primary key, and skip all other rows on the way to that status. The pair is in one index only.
    """
    *others, (column, value) = equal or [("", None)]
    row, place, key = (f"({column}, id)", "(?, ?)", [value]) if column else ("id", "?", [])
    same = "".join(f"{name} = ? AND " for name, _ in others)
    order = f"{column} DESC, id DESC" if column else "id DESC"
    statement = f"""SELECT * FROM {table} WHERE {same} {row} >= {place} AND {row} < {place}
        AND created BETWEEN ? AND ? ORDER BY {order} LIMIT ?"""
    return statement, [*(value for _, value in others), *key, lowest.hex, *key, bound.hex]


def next_url(path: str, query: msgspec.Struct, last: object) -> str:
    """The URL of the page after this item, with the same query."""
    texts = msgspec.to_builtins(query) | {"after": str(last)}
    texts |= {name: ",".join(value) for name, value in texts.items() if isinstance(value, list)}
    return f"{path}?{urlencode(texts, safe=',:')}"
