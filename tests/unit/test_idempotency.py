"""Idempotency-Key: a request that is sent twice creates one transaction."""

import pytest

from calls import assert_problem, at_once, new_station, new_transaction, send, settle


def test_the_same_key_and_body_get_the_first_answer_again(api):
    new_station(api)
    first = send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key="k")
    settle(first.json["id"])
    again = send(api, "POST", "/transactions", b' { "station_id" : 1 } ', Idempotency_Key="k")
    assert (again.status_int, again.json) == (first.status_int, first.json) == (201, first.json)
    assert again.headers["Location"] == first.headers["Location"]
    assert len(api.get("/transactions").json["items"]) == 1


def test_the_same_key_with_another_body_is_refused(api):
    for description in "ab":
        new_station(api, description)
    new_transaction(api, 1, Idempotency_Key="k")
    answer = send(api, "POST", "/transactions", {"station_id": 2}, Idempotency_Key="k")
    assert_problem(answer, 422, "Unprocessable Content", "Idempotency-Key")
    assert len(api.get("/transactions").json["items"]) == 1


def test_another_key_or_none_is_another_transaction(api):
    new_station(api)
    keys = [{"Idempotency_Key": key} for key in ("k", "K", "k k", "null", "1", "é")]
    assert len({new_transaction(api, **headers)["id"] for headers in [*keys, {}, {}]}) == 8
    assert len(api.get("/transactions").json["items"]) == 8


@pytest.mark.parametrize("key", ["null", "a" * 255, "\xe9", "\xc3\xa9", "'; DROP TABLE station; --"])
def test_any_key_of_1_to_255_characters_works(api, key):
    new_station(api)
    assert new_transaction(api, Idempotency_Key=key) == new_transaction(api, Idempotency_Key=key)
    assert len(api.get("/transactions").json["items"]) == 1


@pytest.mark.parametrize("key", ["", "a" * 256])
def test_a_key_of_another_length_is_refused(api, key):
    new_station(api)
    answer = send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key=key)
    assert_problem(answer, 422, "Unprocessable Content", "headers.Idempotency-Key", "length")
    assert api.get("/transactions").json["items"] == []


def test_a_refused_transaction_does_not_use_up_its_key(api):
    assert send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key="k").status_int == 422
    new_station(api)
    assert send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key="k").status_int == 201


def test_sixteen_requests_with_one_key_create_one_row(api):
    new_station(api)
    for number in range(5):
        answers = at_once(
            16,
            lambda key=f"race {number}": send(
                api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key=key
            ),
        )
        assert {answer.status_int for answer in answers} == {201}
        assert len({answer.body for answer in answers}) == 1
    assert len(api.get("/transactions").json["items"]) == 5


def test_of_sixteen_requests_with_one_key_and_two_bodies_one_body_wins(api):
    bodies = [{"station_id": new_station(api, description)} for description in "ab"] * 8
    answers = at_once(16, lambda: send(api, "POST", "/transactions", bodies.pop(), Idempotency_Key="k"))
    assert sorted(answer.status_int for answer in answers) == [201] * 8 + [422] * 8
    assert len(api.get("/transactions").json["items"]) == 1


def test_sixteen_requests_without_a_key_create_sixteen_rows(api):
    new_station(api)
    answers = at_once(16, lambda: new_transaction(api))
    listed = api.get("/transactions").json["items"]
    assert listed == sorted(answers, key=lambda transaction: transaction["id"], reverse=True)


@pytest.mark.parametrize("key", ["a,b", "a, b", ",", "a,"])
def test_a_key_with_a_comma_is_refused_because_it_was_sent_twice(api, key):
    new_station(api)
    answer = send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key=key)
    assert_problem(answer, 400, "Bad Request", "Idempotency-Key")
    assert api.get("/transactions").json["items"] == []
