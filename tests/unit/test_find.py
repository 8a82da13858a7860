"""Search, filters and pages: what they find, what they refuse, and how much they read for it."""

import json
import re
from datetime import datetime, timedelta
from itertools import product
from urllib.parse import quote

import pytest

import models
from calls import new_station, new_transaction, send, service, settle, walk
from kit import storage
from kit.clock import SECOND, moment, uuid7
from kit.requests import TIME
from kit.storage import execute
from programs import MIGRATIONS
from schemas import Status

ROWS, STATIONS, LIMIT = 10_000, 50, 51
OLD = 500  # rows of the first station, the oldest ones
BEGAN = 1_800_000_000 * SECOND
only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


# Over HTTP


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("übung", [1]),
        ("ÜBUNG", [1]),
        ("école", [2]),
        ("ΣΊΓΜΑΣ", [3]),
        ("σίγμας", [3]),
        ("ΊΓΜΑ", [3]),
        ("вокзал", [4]),
        ("%", [2]),
        ("_", [3]),
        ("100%", [2]),
        ("a_b", [3]),
        ("a%b", []),
        ("!", []),
        ("!%", []),
        ("axb", []),
        ("café", [6]),
        ("cafe\u0301", [6]),
        ("CAFÉ", [6]),
        ("istanbul", [7]),
        ("İSTANBUL", [7]),
        ("i\u0307stanbul", [7]),
        ("\u0131sparta", [8]),
        ("isparta", [8]),
        ("STRASSE", [8]),
        ("\ufb01liale \uff11", [8]),
        ("\\", [5]),
        ("'", [5]),
        ("?", [5]),
        ("{}", [5]),
        (" ", [2, 3, 8]),
        ("nope", []),
    ],
)
def test_a_search_finds_a_text_in_any_letter_case_and_takes_it_literally(api, q, found):
    mac, wide = "Cafe\u0301", "ISPARTA Straße Filiale 1"
    for description in ("Übung", "ÉCOLE 100%", "Σίγμας a_b", "ВОКЗАЛ", "\\'?{}%s", mac, "İstanbul", wide):
        new_station(api, description)
    assert api.get("/stations/6").json["description"] == mac  # as it was typed
    found = [5, *found] if q == "%" else found
    assert sorted(one["id"] for one in api.get(f"/stations?q={quote(q)}").json["items"]) == sorted(found)


def test_a_search_finds_a_changed_description_and_what_release_1_1_stored(api):
    for _ in range(2):
        new_station(api, "İzmir")
    send(api, "PATCH", "/stations/1", {"description": "Ödemiş"})
    execute(service().store.database, "UPDATE station SET folded = NULL WHERE id = 2")

    def found(q):
        return [one["id"] for one in api.get(f"/stations?q={quote(q)}").json["items"]]

    assert (found("ÖDEMİŞ"), found("ZMIR")) == ([1], [2])


def test_a_search_has_pages_too(api):
    for number in range(10):
        new_station(api, f"{'Ü' if number % 2 else 'ü'} {number}" if number % 3 else "other")
    pages = walk(api, f"/stations?q={quote('Ü')}&limit=2")
    assert [[one["id"] for one in page] for page in pages] == [[2, 3], [5, 6], [8, 9]]


@pytest.mark.parametrize("path", ["/stations?limit=2&q=t", "/transactions?limit=2&status=PENDING,ERROR"])
def test_a_page_links_to_the_next_one_in_a_header_too(api, path):
    for _ in range(3):
        new_station(api)
        new_transaction(api)
    first = api.get(path)
    assert first.headers["Link"] == f'<{first.json["next"]}>; rel="next"'
    last = api.get(first.json["next"])
    assert (last.json["next"], "Link" in last.headers) == (None, False)
    assert len(first.json["items"] + last.json["items"]) == 3


def test_several_statuses_are_listed_together_and_each_once(api):
    new_station(api)
    keys = [new_transaction(api)["id"] for _ in range(6)]
    settle(keys[1], "COMPLETED")
    settle(keys[4], "ERROR")

    def listed(statuses):
        pages = walk(api, f"/transactions?status={statuses}&limit=2&station_id=1")
        return [item["id"] for page in pages for item in page]

    assert listed("COMPLETED,ERROR") == listed("ERROR,COMPLETED,ERROR") == [keys[4], keys[1]]
    assert listed("PENDING,COMPLETED,ERROR,EXPIRED") == keys[::-1]
    assert listed("COMPLETED&status=ERROR") == [keys[4], keys[1]]  # as generated clients write it
    assert listed("EXPIRED") == []


def test_a_range_of_time_includes_both_ends(api):
    new_station(api)
    created = [new_transaction(api)["created"] for _ in range(5)]

    def listed(**times):
        query = "&".join(f"{name}={quote(time)}" for name, time in times.items())
        pages = walk(api, f"/transactions?{query}&limit=2")
        return [item["created"] for page in pages for item in page][::-1]

    assert listed(created_from=created[1]) == created[1:]
    assert listed(created_to=created[3]) == created[:4]
    assert listed(created_from=created[1], created_to=created[3]) == created[1:4]
    assert listed(created_from=created[3], created_to=created[1]) == []
    east = datetime.fromisoformat(created[2]) + timedelta(hours=5, minutes=30)
    elsewhere = east.replace(tzinfo=None).isoformat() + "+05:30"
    assert listed(created_from=elsewhere, created_to=elsewhere) == [created[2]]
    assert listed(created_from="0001-01-01T00:00:00Z", created_to="9999-12-31T23:59:59.999999Z") == created


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
    for which, status in ((0, "COMPLETED"), (1, "ERROR"), (2, "COMPLETED"), (3, "ERROR")):
        settle(made[which]["id"], status)
    begin = datetime.fromisoformat(made[0]["created"]).replace(microsecond=0)
    time = quote(begin.isoformat())
    end = quote((begin + timedelta(days=31)).isoformat())

    def counted(query, station=""):
        answer = api.get(f"/transactions/counts?{query}&{station}").json
        listed = api.get(f"/transactions?{station}").json["items"]
        starts = [item["from"] for item in answer["items"]]
        for item, start, after in zip(answer["items"], starts, [*starts[1:], answer["to"]], strict=True):
            start, after = datetime.fromisoformat(start), datetime.fromisoformat(after)
            assert timedelta(0) < after - start <= timedelta(seconds=answer["step"])
            within = [one for one in listed if start <= datetime.fromisoformat(one["created"]) < after]
            expected = {status: sum(one["status"] == status for one in within) for status in Status}
            assert item == expected | {"from": item["from"]}
        return (
            answer["step"],
            len(answer["items"]),
            sum(sum(item[one] for one in Status) for item in answer["items"]),
        )

    with caplog.at_level("DEBUG", "peewee"):
        assert counted("") == (3, 200, 6)
        for _ in range(5):
            assert counted(f"from={time}&to={end}") == (13392, 200, 6)
    ours = [record for record in caplog.records if "WITH step" in str(record.msg)]
    assert len(ours) == 2  # the same answer is computed once in 5 s
    assert counted("step=7", "station_id=2")[1:] == (86, 2)
    assert counted("", "station_id=77")[2] == 0
    assert counted(f"to={time}")[2] == 0


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        *(
            (
                f"/transactions/latest?station_id={ids}",
                "query.station_id: must be 1 to 200 ids of stations with commas, each from 1 to 2147483647",
            )
            for ids in ("0", "1,2147483648", "1,1.0", ",".join("1" * 201))
        ),
        ("/transactions/latest?station_id=1,,2", "query.station_id: Expected `int`, got `str`"),
        ("/transactions/latest", "query.station_id: is missing"),
        *(
            (f"/transactions/counts?{query}", "query.to: must be later than query.from, by 31 days at most.")
            for query in (
                "from=2026-03-28T00:00:00Z&to=2026-03-28T00:00:00Z",
                "from=2026-03-29T00:00:00Z&to=2026-03-28T00:00:00Z",
                "from=2026-03-28T00:00:00Z&to=2026-04-28T00:00:00.001Z",
                "from=2026-03-28T00:00:00Z",
                "from=9999-12-31T23:59:59.999999Z",
                "to=0001-01-01T00:00:00Z",
            )
        ),
        *(
            (f"/transactions/counts?step={step}", "query.step: Expected `int` from 1 to 2678400")
            for step in (0, 2678401, "3.0")
        ),
        ("/transactions/counts?step=2", "query.step: must be at least 3, for 200 steps at most."),
        ("/transactions/counts?from=2026", f"query.from: {TIME}"),
        ("/transactions/latest?limit=1&station_id=1", "query.limit: is not one of station_id"),
        (
            "/transactions?status=done",
            "query.status: 'done' is not one of PENDING, COMPLETED, ERROR, EXPIRED",
        ),
        ("/stations?colour=red", "query.colour: is not one of q, limit, after"),
        (
            "/transactions?q=x",
            "query.q: is not one of status, station_id, idempotency_key, created_from, created_to, "
            "limit, after",
        ),
        ("/stations?limit=0", "query.limit: Expected `int` from 1 to 200"),
        ("/transactions?created_from=2026-03-28T00:18:13", f"query.created_from: {TIME}"),
    ],
)
def test_a_refusal_lists_what_is_allowed(api, path, detail):
    answer = send(api, "GET", path)
    assert (answer.status_int, answer.json["detail"]) == (422, detail)


def test_a_refusal_of_a_body_lists_what_is_allowed(api):
    def detail(method, path, body):
        return send(api, method, path, body).json["detail"]

    new_station(api)
    assert detail("POST", "/stations", {"x": 1}) == "body.x: is not one of description"
    assert detail("POST", "/stations", {}) == "body.description: is missing"
    blank = "body.description: must have 1 to 255 characters, at least one of them visible, and no control "
    blank += "characters, line breaks or marks that change the direction of text"
    assert detail("PUT", "/stations/1", {"description": " "}) == blank
    assert detail("POST", "/transactions", {"station_id": 0}).endswith("from 1 to 2147483647")


# What a page reads


def row(number: int) -> tuple:
    late = number >= ROWS * 0.9
    statuses = ["PENDING", "EXPIRED", "COMPLETED", "ERROR"] if late else ["COMPLETED", "ERROR"]
    created = BEGAN + number * SECOND // 10
    station_id = 1 if number < OLD else 2 + number % (STATIONS - 1)
    return uuid7(created, 0).hex, station_id, statuses[number % len(statuses)], created, created


STORED = [row(number) for number in range(ROWS)]


@pytest.fixture
def database(database_url):
    """Many rows. Station 1 has only the oldest ones, and only the newest are PENDING or EXPIRED."""
    database = storage.connect(database_url, 5)
    storage.prepare(database, MIGRATIONS, models.TABLES)
    with database.atomic():
        for number in range(STATIONS):
            models.create_station(database, f"station {number}")
        places = ", ".join(["(?, ?, ?, ?, ?, 1)"] * 500)
        for first in range(0, ROWS, 500):
            values = [value for one in STORED[first : first + 500] for value in one]
            columns = "id, station_id, status, created, updated, attempts"
            statement = f'INSERT INTO "transaction" ({columns}) VALUES {places}'
            execute(database, statement, *values)
    execute(database, "ANALYZE")
    yield database
    database.close_all()


def pages(database):
    """Every combination of filters, with what it finds."""
    times = [moment(BEGAN + ROWS * part // 4 * SECOND // 10) for part in (1, 2)]
    (after,) = models.list_transactions(database, 1, created_to=moment(BEGAN + 700 * SECOND))
    statuses = [], [Status.EXPIRED], [Status.PENDING, Status.EXPIRED], list(Status)
    for status, station, cursor, begin, end in product(
        statuses, (None, 1, 7), (None, after.id), (None, times[0]), (None, times[1])
    ):
        filters = {"after": cursor, "station_id": station, "created_from": begin, "created_to": end}
        filters = {name: value for name, value in filters.items() if value is not None}
        yield (
            filters | {"status": status},
            models.list_transactions(database, LIMIT, status=status, **filters),
        )


def expected(database, filters) -> list:
    """What a page must hold, without an index and without our SQL."""
    found = []
    for _, station, status, created, _ in reversed(STORED):
        if (
            (not filters["status"] or status in filters["status"])
            and filters.get("station_id", station) == station
            and filters.get("created_from", moment(created)) <= moment(created)
            and filters.get("created_to", moment(created)) >= moment(created)
            and ("after" not in filters or created < BEGAN + 700 * SECOND)
        ):
            found.append(moment(created))
            if len(found) == LIMIT:
                break
    return found


def test_every_combination_of_filters_finds_what_it_should(database):
    for filters, found in pages(database):
        assert [one.created for one in found] == expected(database, filters), filters


@pytest.fixture
def planned(caplog, database) -> list[tuple]:
    """Every statement of these pages, with its values."""
    with caplog.at_level("DEBUG", "peewee"):
        assert len(list(pages(database))) == 96
    return [
        record.msg for record in caplog.records if record.name == "peewee" and record.threadName != "ledger"
    ]


@only_sqlite
def test_a_page_reads_ranges_of_indexes_in_sqlite(database, planned):
    for sql, values in planned:
        steps = [step for *_, step in database.execute_sql(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()]
        searches = [step for step in steps if step.startswith("SEARCH transaction USING INDEX")]
        assert len(searches) == sql.count('FROM "transaction"'), steps
        for step in searches:
            assert re.search(r"\bid\)?>.*\bid\)?<", step), step
        others = {step for step in steps if "SCAN" in step}
        assert others <= {"SCAN part"}, steps


@only_postgresql
def test_a_page_reads_few_rows_in_postgresql(database, planned):
    for sql, values in planned:
        ((plan,),) = database.execute_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", values).fetchall()
        text = plan if isinstance(plan, str) else json.dumps(plan)
        nodes = list(walk_plan(json.loads(text)[0]["Plan"]))
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
