"""Search, filters and pages: what they find, what they refuse, and how much they read for it."""

import json
import re
from datetime import datetime, timedelta
from itertools import islice, pairwise, product
from urllib.parse import quote

import peewee
import pytest

import models
from calls import new_station, new_transaction, send, service, settle, walk
from kit.clock import SECOND, microseconds, moment, uuid7
from kit.storage import execute, is_postgresql
from postgres import BOTH
from schemas import Status

ROWS, STATIONS, LIMIT = 10_000, 50, 51
OLD = 500  # rows of the first station, the oldest ones
BEGAN = 1_800_000_000 * SECOND
both = pytest.mark.parametrize("api", BOTH, indirect=True)


# Over HTTP


def listed(api, path: str) -> list:
    """The id of each item of a list, over all its pages of two."""
    return [item["id"] for page in walk(api, f"{path}&limit=2") for item in page]


PLACES = {  # texts that find it
    "Übung": "übung ÜBUNG",
    "ÉCOLE 100%": "école 100%",
    "Σίγμας a_b": "ΣΊΓΜΑΣ σίγμας ΊΓΜΑ _ a_b",
    "ВОКЗАЛ": "вокзал",
    "\\'?{}%s": "\\ ' ? {}",
    "Cafe\u0301": "café cafe\u0301 CAFÉ",
    "İstanbul": "istanbul İSTANBUL i\u0307stanbul",
    "ISPARTA Straße Filiale 1": "\u0131sparta isparta STRASSE \ufb01liale",
}


@both
def test_a_search_finds_a_text_in_any_letter_case_and_takes_it_literally(api):
    for description in PLACES:
        new_station(api, description)
    assert api.get("/stations/6").json["description"] == "Cafe\u0301"  # as it was typed
    found = lambda q: listed(api, f"/stations?q={quote(q)}")  # noqa: E731
    for number, texts in enumerate(PLACES.values(), 1):
        for text in texts.split():
            assert found(text) == [number], text
    for text in ("a%b", "!", "!%", "axb", "nope"):
        assert found(text) == [], text
    assert (found("%"), found(" "), found("\ufb01liale \uff11")) == ([2, 5], [2, 3, 8], [8])
    send(api, "PATCH", "/stations/1", {"description": "Ödemiş"})
    execute(service().store.database, "UPDATE station SET folded = NULL WHERE id = 7")  # as release 1.1 does
    assert (found("übung"), found("ÖDEMİŞ"), found("STANBUL")) == ([], [1], [7])


@both
def test_pages_hold_everything_once_and_what_is_new_disturbs_none(api):
    stations = [new_station(api) for _ in range(6)]
    newest = [new_transaction(api)["id"] for _ in range(6)][::-1]
    for limit, sizes in ((1, [1] * 6), (4, [4, 2]), (6, [6])):
        for path, ids in (("stations", stations), ("transactions", newest)):
            pages = walk(api, f"/{path}?limit={limit}")
            assert [len(page) for page in pages] == sizes
            assert [item["id"] for page in pages for item in page] == ids
    for path, create in (("/stations?q=t", new_station), ("/transactions?status=PENDING", new_transaction)):
        items = api.get(path).json["items"]
        first = api.get(f"{path}&limit=4")
        assert first.headers["Link"] == f'<{first.json["next"]}>; rel="next"'
        create(api)
        last = api.get(first.json["next"])
        new = [{"id": 7, "description": "Teste"}] if create is new_station else []  # they come last
        assert first.json["items"] + last.json["items"] == items + new
        assert (last.json["next"], "Link" in last.headers) == (None, False)
    while new_station(api) <= 50:
        pass
    assert [len(page) for page in walk(api, "/stations")] == [50, 1]  # unless told


def test_filters_find_several_statuses_and_both_ends_of_a_time(api):
    new_station(api)
    made = [new_transaction(api) for _ in range(6)]
    settle(made[1]["id"], "COMPLETED")
    settle(made[4]["id"], "ERROR")
    times = [one["created"] for one in made]
    east = datetime.fromisoformat(times[2]) + timedelta(hours=5, minutes=30)
    elsewhere = quote(east.replace(tzinfo=None).isoformat() + "+05:30")
    for query, wanted in (
        ("status=COMPLETED,ERROR", [4, 1]),
        ("status=ERROR,COMPLETED,ERROR", [4, 1]),
        ("status=COMPLETED&status=ERROR", [4, 1]),  # as generated clients write it
        ("status=PENDING,COMPLETED,ERROR,EXPIRED", [5, 4, 3, 2, 1, 0]),
        ("status=EXPIRED", []),
        (f"created_from={times[2]}", [5, 4, 3, 2]),
        (f"created_to={times[3]}", [3, 2, 1, 0]),
        (f"created_from={times[1]}&created_to={times[3]}", [3, 2, 1]),
        (f"created_from={times[3]}&created_to={times[1]}", []),
        (f"created_from={elsewhere}&created_to={elsewhere}", [2]),
        ("created_from=0001-01-01T00:00:00Z&created_to=9999-12-31T23:59:59.999999Z", [5, 4, 3, 2, 1, 0]),
    ):
        found = listed(api, f"/transactions?station_id=1&{query}")
        assert found == [made[which]["id"] for which in wanted], query


def test_the_newest_transaction_of_each_station_is_found(api):
    for _ in range(4):
        new_station(api)
    made = [new_transaction(api, station) for station in (3, 1, 3, 1, 2)]
    settle(made[2]["id"], reason="full")

    def latest(ids):
        return api.get(f"/transactions/latest?station_id={ids}").json["items"]

    newest = [api.get(f"/transactions/{made[which]['id']}").json for which in (3, 4, 2)]
    assert latest("3,1,2,4,77,1") == latest("1&station_id=2&station_id=3") == newest
    assert newest[2]["reason"] == "full"
    assert latest("4") == []
    assert len(latest(",".join(map(str, range(1, 201))))) == 3


def test_counts_are_those_of_the_list(api, caplog):
    for _ in range(2):
        new_station(api)
    made = [new_transaction(api, station) for station in (1, 2, 1, 1, 2, 1)]
    for one, status in zip(made, ("COMPLETED", "ERROR", "COMPLETED", "ERROR"), strict=False):
        settle(one["id"], status)
    begin = datetime.fromisoformat(made[0]["created"]).replace(microsecond=0)
    time, end = quote(begin.isoformat()), quote((begin + timedelta(days=31)).isoformat())

    def counted(query: str, station: str = "") -> tuple[int, int, int]:
        """The step, how many steps there are, and how many transactions."""
        answer = api.get(f"/transactions/counts?{query}&{station}").json
        items = api.get(f"/transactions?{station}").json["items"]
        times = [*(one["from"] for one in answer["items"]), answer["to"]]
        starts = map(datetime.fromisoformat, times)
        for item, (start, after) in zip(answer["items"], pairwise(starts), strict=True):
            assert timedelta(0) < after - start <= timedelta(seconds=answer["step"])
            created = [(datetime.fromisoformat(one["created"]), one["status"]) for one in items]
            within = [status for time, status in created if start <= time < after]
            assert item == {status: within.count(status) for status in Status} | {"from": item["from"]}
        total = sum(item[status] for item in answer["items"] for status in Status)
        return answer["step"], len(answer["items"]), total

    with caplog.at_level("DEBUG", "peewee"):
        assert counted("") == (3, 200, 6)
        for _ in range(5):
            assert counted(f"from={time}&to={end}") == (13392, 200, 6)
    ours = [record for record in caplog.records if "WITH step" in str(record.msg)]
    assert len(ours) == 2  # the same answer is computed once in 5 s
    assert counted("step=7", "station_id=2")[1:] == (86, 2)
    assert counted("", "station_id=77")[2] == 0
    assert counted(f"to={time}", "station_id=1")[2] == 0  # other tests may have counted all a moment ago
    for query, first in (
        ("to=9999-12-31T23:59:59-14:00", "9999-12-31T23:49:59.999000Z"),
        ("from=0001-01-01T00:00:00%2B14:00&to=0001-01-02T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("to=1970-01-01T00:00:00Z", "1969-12-31T23:50:00Z"),
    ):
        assert api.get(f"/transactions/counts?{query}").json["from"] == first


# What a page reads


def row(number: int) -> tuple:
    late = number >= ROWS * 0.9
    statuses = ["PENDING", "EXPIRED", "COMPLETED", "ERROR"] if late else ["COMPLETED", "ERROR"]
    created = BEGAN + number * SECOND // 10
    station_id = 1 if number < OLD else 2 + number % (STATIONS - 1)
    return uuid7(created, 0), station_id, statuses[number % len(statuses)], created, created, 1


STORED = [row(number) for number in range(ROWS)]


@pytest.fixture
def database(emptied):
    """Many rows. Station 1 has only the oldest ones, and only the newest are PENDING or EXPIRED."""
    database, _ = emptied
    table = peewee.Table("transaction")
    fields = [table.c[name] for name in ("id", "station_id", "status", "created", "updated", "attempts")]
    with database.atomic():
        for number in range(STATIONS):
            models.create_station(database, f"station {number}")
        for some in peewee.chunked([(key.hex, *values) for key, *values in STORED], 500):
            table.insert(some, columns=fields).execute(database)
    execute(database, "ANALYZE")
    return database


@pytest.mark.parametrize("emptied", BOTH, indirect=True)
def test_every_combination_of_filters_finds_what_it_should_and_reads_little(database, caplog):
    caplog.set_level("DEBUG", "peewee")
    caplog.clear()
    early, middle, late = (BEGAN + seconds * SECOND for seconds in (250, 500, 700))
    after = next(key for key, *_, created, _, _ in STORED if created == late)
    statuses = [], [Status.EXPIRED], [Status.PENDING, Status.EXPIRED], list(Status)
    for wanted, station, cursor, begin, end in product(
        statuses, (None, 1, 7), (None, after), (0, early), (microseconds(models.LATEST), middle)
    ):
        times = moment(begin), moment(end)
        found = models.list_transactions(database, LIMIT, cursor, wanted, station, *times)
        # The same without an index and without our SQL.
        expected = (
            key
            for key, of, status, created, _, _ in reversed(STORED)
            if (not wanted or status in wanted)
            and station in (None, of)
            and begin <= created <= end
            and (cursor is None or key < cursor)
        )
        assert [one.id for one in found] == list(islice(expected, LIMIT)), (wanted, station, cursor, times)
    statements = [one.msg for one in caplog.records if one.name == "peewee" and one.threadName != "ledger"]
    assert len(statements) == 96
    for sql, values in statements:
        (reads_few_rows if is_postgresql(database) else reads_ranges_of_indexes)(database, sql, values)


def reads_ranges_of_indexes(database, sql: str, values: list) -> None:
    steps = [step for *_, step in database.execute_sql(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()]
    searches = [step for step in steps if step.startswith("SEARCH transaction USING INDEX")]
    assert len(searches) == sql.count('FROM "transaction"'), steps
    assert all(re.search(r"\bid\)?>.*\bid\)?<", step) for step in searches), searches
    assert {step for step in steps if "SCAN" in step} <= {"SCAN part"}, steps


def reads_few_rows(database, sql: str, values: list) -> None:
    ((plan,),) = database.execute_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", values).fetchall()
    nodes = list(walk_plan((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]))
    scans = [node for node in nodes if node.get("Relation Name") == "transaction"]
    assert len(scans) == sql.count('FROM "transaction"')
    for node in scans:
        assert node["Node Type"] in ("Index Scan", "Bitmap Heap Scan"), node
        # If few rows match, it may take them all and sort them.
        assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= OLD, node


def walk_plan(node):
    yield node
    for child in node.get("Plans", ()):
        yield from walk_plan(child)
