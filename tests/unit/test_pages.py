"""Lists, their pages and their filters."""

from urllib.parse import parse_qs, urlsplit

import pytest

from calls import at_once, new_station, new_transaction, settle, walk
from postgres import BOTH


@pytest.mark.parametrize("api", BOTH, indirect=True)
def test_pages_hold_everything_once(api):
    stations = [new_station(api) for _ in range(6)]
    transactions = [new_transaction(api) for _ in range(6)]
    for limit, sizes in ((1, [1] * 6), (2, [2] * 3), (4, [4, 2]), (5, [5, 1]), (6, [6]), (7, [6])):
        pages = walk(api, f"/stations?limit={limit}")
        assert [len(page) for page in pages] == sizes
        assert [item["id"] for page in pages for item in page] == stations
        pages = walk(api, f"/transactions?limit={limit}")
        assert [len(page) for page in pages] == sizes
        assert [item for page in pages for item in page] == transactions[::-1]


def test_pages_keep_their_filters(api):
    expected = []
    for number in range(24):
        station_id = new_station(api) if number < 2 else number % 2 + 1
        key = new_transaction(api, station_id)["id"]
        if number % 3:
            settle(key, "COMPLETED" if number % 3 == 1 else "ERROR")
        if (station_id, number % 3) == (2, 1):
            expected.insert(0, key)
    url, found = "/transactions?status=COMPLETED&station_id=2&limit=1", []
    while url:
        query = parse_qs(urlsplit(url).query)
        assert query.items() >= {"status": ["COMPLETED"], "station_id": ["2"], "limit": ["1"]}.items()
        assert urlsplit(url).path == "/transactions"
        answer = api.get(url).json
        found += answer["items"]
        url = answer["next"]
    assert [item["id"] for item in found] == expected
    assert {(item["status"], item["station"]["id"]) for item in found} == {("COMPLETED", 2)}


def test_what_is_new_disturbs_no_page(api):
    stations = [new_station(api) for _ in range(4)]
    transactions = [new_transaction(api)["id"] for _ in range(4)]
    first = api.get("/transactions?limit=2").json
    new_transaction(api)
    rest = walk(api, first["next"])
    assert [item["id"] for page in [first["items"], *rest] for item in page] == transactions[::-1]

    first = api.get("/stations?limit=2").json
    api.delete("/stations/2")
    stations.append(new_station(api))
    rest = walk(api, first["next"])
    assert [item["id"] for page in [first["items"], *rest] for item in page] == stations


def test_a_page_holds_50_unless_told(api):
    for number in range(51):
        new_station(api, str(number))
    assert [len(page) for page in walk(api, "/stations")] == [50, 1]
    assert len(api.get("/stations?limit=200").json["items"]) == 51
    at_once(51, lambda: new_transaction(api))
    assert [len(page) for page in walk(api, "/transactions")] == [50, 1]
