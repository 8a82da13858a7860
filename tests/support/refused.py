"""Requests that must be refused, each with its status and a word of the detail."""

from calls import KIB, UNKNOWN
from schemas import LARGEST_ID

DEEP = b"[" * (60 * KIB)
LONG = b" " * (64 * KIB + 1)


def descriptions(*values) -> list[dict]:
    return [{"description": value} for value in values]


def stations(*values) -> list[dict]:
    return [{"station_id": value} for value in values]


NOT_JSON = [b"", b"{'description': 'x'}", b'{"description": "x"} y', '{"description": "x"}'.encode("utf-16")]
NOT_JSON += [b'{"description": "\xff"}', b'{"description": "\n"}', b'{"description": "\\ud800"}']
NO_NUMBER = [b'{"station_id": %s}' % number for number in (b"1e0", b"1e999", b"1" * 5000)]
NO_JSON_NUMBER = [b'{"station_id": %s}' % text for text in (b"01", b"NaN")]
TEXT = "1 to 255 characters, at least one of them visible"
TIME = "must be a time with its zone, such as 2026-03-28T00:18:13Z (in a URL, write + as %2B)"
BLANKS = "\u00a0\u2003\u3000\ufeff|\u200b|\u200d\ufe0f|\u00ad\u2060|\u2800|\u3164|\ufff9\ufffb"
CONTROLS = "", "\t \n", "a\0", "\nx", "x\n", "a\x7f", "a\u0085b", "a\u2028", "\u202eb", "a\u2066b\u2069"
BODIES = [
    # route, status, a word of the detail, bodies: bytes, or values that become JSON
    ("POST /stations", 400, "body", NOT_JSON),
    ("PUT /stations/1", 400, "body", [b'{"description": "\\udbff\\udbff"}']),
    ("PATCH /stations/1", 400, "body", [b'{"\\ud800": "x"}']),
    ("POST /transactions", 400, "body", NO_JSON_NUMBER),
    ("POST /stations", 422, "body", [[], [{"description": "x"}], "description", 1, b"null", DEEP]),
    ("POST /stations", 422, "body.description: is missing", [{}]),
    ("POST /stations", 422, "body.x: is not one of description", [{"x": 1}, b'{"x": ' + DEEP]),
    ("POST /stations", 422, "body.description", descriptions(None, 1, "", " ", "a" * 256, "a\0b")),
    ("PUT /stations/1", 422, TEXT, descriptions(*CONTROLS)),
    ("PATCH /stations/1", 422, "body.description", descriptions(None, "", *BLANKS.split("|"), "🔋" * 256)),
    ("POST /stations", 422, "body.colour", [{"description": "x", "colour": "red"}]),
    ("PATCH /stations/1", 422, "body.colour", [{"colour": "red"}]),
    ("POST /transactions", 422, "station_id", [{}]),
    ("POST /transactions", 422, "body.station_id", stations(None, "1", True, [1], 0, -1, 1.5, 2**31, 2**64)),
    ("POST /transactions", 422, "from 1 to 2147483647", stations(0, -1)),
    ("POST /transactions", 422, "body.status", [{"station_id": 1, "status": "COMPLETED"}]),
    ("PUT /stations/x", 422, "id", [b"{"]),  # the path matters before the body
    ("POST /stations", 413, "65536", [LONG]),
    ("PUT /stations/1", 413, "65536", [LONG]),
]
# What no schema describes: which stations exist; and in JSON Schema 1.0 is an integer.
BEYOND = [
    ("POST /transactions", 422, "body.station_id", [*stations(1.0), *NO_NUMBER]),
    ("POST /transactions", 422, "no station 2147483647", stations(LARGEST_ID)),
]
# The place that the detail names, and URLs.
LATEST = "must be 1 to 200 ids of stations with commas, each from 1 to 2147483647"
URLS = {
    "id": f"""/stations/x /stations/0 /stations/1.5 /stations/1%00 /stations/%D9%A1 /stations/2147483648
        /stations/{"1" * 5000} /transactions/1 /transactions/{UNKNOWN[:18]} /transactions/%7B{UNKNOWN}%7D""",
    "query.q": f"/stations?q=%ed%a0%80 /stations?q= /stations?q={'x' * 256}",
    "query.q: must be UTF-8": "/stations?q=%ff",
    "query.": "/stations?%ed%a0%80=1",
    "query.colour: is not one of q, limit, after": "/stations?colour=red",
    "query.q: is not one of status, station_id, idempotency_key, created_from": "/transactions?q=x",
    "query.limit": "/stations?limit=x /transactions?limit=201 /stations?limit=1&%6cimit=1",
    "query.limit: Expected `int` from 1 to 200": "/stations?limit=0",
    "query.status": "/stations?status=PENDING /transactions?status=pending /transactions?status=",
    "query.status: 'DONE' is not one of PENDING, COMPLETED": "/transactions?status=PENDING,DONE",
    "query.status: ''": "/transactions?status=ERROR,",
    f"query.created_from: {TIME}": "/transactions?created_from=2026-03-28T00:18:13",
    "query.created_to: must be a time": """/transactions?created_to=2026-03-28
        /transactions?created_to=2026-03-28T00:18:13+01:00 /transactions?created_to=2026-02-30T00:00:00Z""",
    "query.station_id": "/transactions?station_id=x /transactions?station_id=2147483648",
    f"query.station_id: {LATEST}": f"""/transactions/latest?station_id=0
        /transactions/latest?station_id=1,1.0 /transactions/latest?station_id={",".join("1" * 201)}""",
    "query.station_id: Expected `int`, got `str`": "/transactions/latest?station_id=1,,2",
    "query.station_id: is missing": "/transactions/latest",
    "query.to: must be later than query.from, by 31 days at most.": """
        /transactions/counts?from=2026-03-28T00:00:00Z&to=2026-03-28T00:00:00Z
        /transactions/counts?from=2026-03-28T00:00:00Z&to=2026-04-28T00:00:00.001Z
        /transactions/counts?from=2026-03-28T00:00:00Z /transactions/counts?to=0001-01-01T00:00:00Z
        /transactions/counts?from=9999-12-31T23:59:59.999999Z""",
    "query.step: Expected `int` from 1 to 2678400": "/transactions/counts?step=0",
    "query.step: must be at least 3, for 200 steps at most.": "/transactions/counts?step=2",
    f"query.from: {TIME}": "/transactions/counts?from=2026",
    "query.after": f"/transactions?after=1 /stations?after={UNKNOWN} /stations?after=0",
}
