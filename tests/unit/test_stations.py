"""Stations over HTTP."""

import pytest

from calls import JSON, assert_problem, new_station, new_transaction, send, service
from kit.storage import execute, is_postgresql
from postgres import BOTH


def test_a_station_reads_as_it_was_created_and_changed_until_it_is_deleted(api):
    answer = api.post_json("/stations", {"description": "Teste"}, status=201)
    assert answer.json == {"id": 1, "description": "Teste"}
    assert answer.headers["Location"] == "/stations/1"
    assert answer.headers["Content-Type"] == JSON
    assert api.get("/stations/1").json == answer.json
    other = new_station(api, "other")
    for method, body in (("PUT", {"description": "a"}), ("PATCH", {"description": "b"}), ("PATCH", {})):
        answer = send(api, method, "/stations/1", body)
        assert (answer.status_int, answer.json) == (200, {"id": 1} | (body or {"description": "b"}))
        assert api.get("/stations/1").json == answer.json
    answer = send(api, "DELETE", "/stations/1")
    assert (answer.status_int, answer.body) == (204, b"")
    assert api.get("/stations").json["items"] == [{"id": other, "description": "other"}]
    new = {"description": "x"}
    for method, body in [("GET", None), ("DELETE", None), ("PATCH", {}), ("PATCH", new), ("PUT", new)]:
        assert_problem(send(api, method, "/stations/1", body), 404, "Not found", "There is no station 1.")


@pytest.mark.parametrize("api", BOTH, indirect=True)
def test_a_deleted_id_is_never_given_again(api):
    for _ in range(3):
        newest = new_station(api)
    api.delete(f"/stations/{newest}")
    assert new_station(api) == newest + 1
    for station in api.get("/stations").json["items"]:
        api.delete(f"/stations/{station['id']}")
    assert new_station(api) == newest + 2


@pytest.mark.parametrize("api", BOTH, indirect=True)
def test_after_the_last_id_no_station_is_stored(api):
    new_station(api)
    database = service().store.database
    for last in (2**31 - 2, 2**31 - 1):
        if is_postgresql(database):
            execute(database, "SELECT setval('station_id_seq', ?)", last)
        else:
            execute(database, "UPDATE sqlite_sequence SET seq = ? WHERE name = 'station'", last)
        answer = send(api, "POST", "/stations", {"description": "x"})
        if last < 2**31 - 1:
            assert (answer.status_int, answer.json["id"]) == (201, last + 1)
            assert api.delete(f"/stations/{last + 1}").status_int == 204
    assert_problem(answer, 503, "No more ids", "2147483647", "nothing was stored")
    assert api.get("/stations").json["items"] == [{"id": 1, "description": "Teste"}]
    assert new_transaction(api)["status"] == "PENDING"


TEXTS = ["Estação São João", "電池 🔋 محطة", "<script>alert(1)</script> & <b>'\"</b>", "  x\u2003 ", "null"]
TEXTS += ["\\ / \u200f\u200d", "%00 ?a=b #c", "a" * 255, "🔋" * 255]


@pytest.mark.parametrize("api", BOTH, indirect=True)
def test_a_text_comes_back_as_it_went_in(api):
    for text in TEXTS:
        path = api.post_json("/stations", {"description": text}, status=201).headers["Location"]
        assert api.get(path).json["description"] == text
        assert send(api, "PUT", path, {"description": text}).json["description"] == text
        assert new_transaction(api, int(path.rpartition("/")[2]))["station"]["description"] == text
    assert [one["description"] for one in api.get("/stations").json["items"]] == TEXTS


def test_a_name_of_an_older_release_stays_and_can_be_replaced(api):
    new_station(api)
    for old in ("\u202eetseT", "a\nb", "\u200b"):
        execute(service().store.database, "UPDATE station SET description = ?, folded = NULL", old)
        service().store.database.close()
        assert api.get("/stations").json["items"] == [{"id": 1, "description": old}]
        assert new_transaction(api)["station"]["description"] == old
        assert send(api, "PATCH", "/stations/1", {}).json["description"] == old
        assert_problem(
            send(api, "PUT", "/stations/1", {"description": old}), 422, "Invalid value", "visible"
        )
    assert send(api, "PUT", "/stations/1", {"description": "new"}).json["description"] == "new"
