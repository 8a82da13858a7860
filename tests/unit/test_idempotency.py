"""Idempotency-Key: a request that is sent twice creates one transaction."""

from urllib.parse import quote

import pytest

from calls import assert_problem, new_station, new_transaction, send, settle
from postgres import BOTH


def test_the_same_key_and_body_get_the_transaction_as_it_is_now(api):
    new_station(api)
    first = send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key="k")
    assert (first.status_int, first.json["status"]) == (201, "PENDING")
    assert "Idempotent-Replayed" not in first.headers
    settle(first.json["id"])
    again = send(api, "POST", "/transactions", b' { "station_id" : 1 } ', Idempotency_Key="k")
    assert (again.status_int, again.json["status"]) == (200, "COMPLETED")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert [again.json] == api.get("/transactions").json["items"]


KEYS = "k", "K", "k k", "1", "null", "x" * 255, "a&b=c%", "\xe9", "\xc3\xa9", "'; DROP TABLE station; --"


@pytest.mark.parametrize("api", BOTH, indirect=True)
def test_any_key_of_1_to_255_characters_works_and_finds_its_transaction(api):
    new_station(api)
    assert new_transaction(api) != new_transaction(api)  # without one, each is new
    made = {key: new_transaction(api, Idempotency_Key=key) for key in KEYS}
    assert len(api.get("/transactions").json["items"]) == len(KEYS) + 2
    for key, transaction in made.items():
        assert new_transaction(api, Idempotency_Key=key) == transaction
        text = key.encode("latin1").decode(errors="ignore") or key  # as people read it
        path = f"/transactions?idempotency_key={quote(text)}"
        for more in ("", "&status=PENDING,ERROR&station_id=1", f"&created_from={transaction['created']}"):
            assert transaction in api.get(path + more).json["items"]
        assert len(api.get(path).json["items"]) == 1 + (text == "\xe9")  # two spellings of one letter
        for more in ("status=ERROR", "station_id=2", "created_to=2020-01-01T00:00:00Z"):
            assert api.get(f"{path}&{more}").json["items"] == []


def test_a_refused_transaction_does_not_use_up_its_key_and_a_used_key_takes_no_other_body(api):
    for status, station in ((422, 1), (201, 1), (422, 2)):
        answer = send(api, "POST", "/transactions", {"station_id": station}, Idempotency_Key="k")
        assert answer.status_int == status
        new_station(api)
    assert_problem(answer, 422, "Key used", "Idempotency-Key")
    assert len(api.get("/transactions").json["items"]) == 1


def test_a_key_that_cannot_be_accepted_is_refused(api):
    new_station(api)
    for key in ("", "a" * 256):
        answer = send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key=key)
        assert_problem(answer, 422, "Invalid value", "headers.Idempotency-Key", "1 to 255")
    for key in ("a,b", "a, b", ",", "a,"):  # it was sent twice
        answer = send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key=key)
        assert_problem(answer, 400, "Key malformed", "Idempotency-Key")
    assert api.get("/transactions").json["items"] == []


def test_a_route_that_could_not_keep_the_promise_of_a_key_refuses_it(api):
    new_station(api)
    retry = f"/transactions/{new_transaction(api)['id']}/retry"
    for key in ("k", "", ","):
        for path, word in (("/stations", "Look for the station"), (retry, "409")):
            answer = send(api, "POST", path, {"description": "x"}, Idempotency_Key=key)
            assert_problem(answer, 400, "Key not taken", "Idempotency-Key: is not taken here", word)
        assert send(api, "PUT", "/stations/1", {"description": "x"}, Idempotency_Key=key).status_int == 200
    assert len(api.get("/stations").json["items"]) == 1
