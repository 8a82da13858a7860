"""Entity tags (RFC 9110, sections 8.8.3 and 13.1): so that two people who edit one thing lose no change."""

import re
from hashlib import sha256

import msgspec

from kit.errors import PreconditionFailed

TAG = r'(?:W/)?("[!#-~]*")'
LIST = rf"^(\s*\*\s*|[\s,]*{TAG}(\s*,[\s,]*{TAG})*[\s,]*)$"  # of If-Match; empty items are allowed


def of(value: msgspec.Struct) -> str:
    """The tag of what is answered with this value."""
    return f'"{sha256(msgspec.json.encode(value)).hexdigest()[:20]}"'


def match(header: str, value: msgspec.Struct) -> bool:
    """True if a list of tags has that of this value, or is `*`.

    `W/` before our own tag is ignored: a proxy writes it there when it compresses an answer.
    """
    return header.strip() == "*" or of(value) in re.findall(TAG, header)


def require(if_match: str | None, value: msgspec.Struct) -> None:
    """Raise PreconditionFailed if a request's If-Match does not have the tag of this value."""
    if if_match is not None and not match(if_match, value):
        raise PreconditionFailed(f"If-Match: it has changed; its ETag is {of(value)} now.")
