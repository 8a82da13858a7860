"""ETag, If-None-Match and If-Match: two people who edit one station do not overwrite each other."""

import pytest

from calls import assert_problem, new_station, new_transaction, send

PATH, OTHER = "/stations/1", {"description": "other"}
CHANGES = [("PUT", OTHER), ("PATCH", OTHER), ("PATCH", {}), ("DELETE", None)]


@pytest.fixture
def tag(api) -> str:
    """The tag of a new station."""
    new_station(api)
    return api.get(PATH).headers["ETag"]


def test_a_tag_is_that_of_the_station_as_it_is(api, tag):
    assert (tag[0], tag[-1]) == ('"', '"')
    assert api.get(PATH).headers["ETag"] == send(api, "HEAD", PATH).headers["ETag"] == tag
    changed = send(api, "PATCH", PATH, OTHER).headers["ETag"]
    assert changed == api.get(PATH).headers["ETag"] != tag
    created = send(api, "POST", "/stations", OTHER)
    assert created.headers["ETag"] == api.get(created.headers["Location"]).headers["ETag"] != changed
    assert "ETag" not in send(api, "PUT", PATH, OTHER).headers  # RFC 9110, section 9.3.4


SAME = "{}", "W/{}", "*", ' "x" , {}', '"x",W/{},"y,z"', ", {},"
DIFFERENT = "{}", "W/{}", '"x"', '""', '"*"', '{}, "x"'
UNREADABLE = "", "x", '"x', "W/", '"x" "y"', "* , *", '*, "x"', 'w/"x"', "\xff"


def test_what_is_still_the_same_is_not_sent_again(api, tag):
    for tags in SAME:
        for method in ("GET", "HEAD"):
            answer = send(api, method, PATH, If_None_Match=tags.format(tag))
            assert (answer.status_int, answer.body, answer.headers["ETag"]) == (304, b"", tag)
            assert "Content-Type" not in answer.headers
    for tags in UNREADABLE:
        assert send(api, "GET", PATH, If_None_Match=tags).status_int == 200
    send(api, "PUT", PATH, OTHER)
    for tags in SAME:
        status = send(api, "GET", PATH, If_None_Match=tags.format(tag)).status_int
        assert status == (304 if tags == "*" else 200)


@pytest.mark.parametrize(("method", "body"), CHANGES)
def test_a_change_is_made_if_its_tag_is_that_of_the_station(api, tag, method, body):
    send(api, "PUT", PATH, {"description": "theirs"})
    now = api.get(PATH).headers["ETag"]
    for tags in DIFFERENT:
        answer = send(api, method, PATH, body, If_Match=tags.format(tag))
        assert_problem(answer, 412, "Precondition failed", "If-Match", now)
    for tags in UNREADABLE:
        answer = send(api, method, PATH, body, If_Match=tags)
        assert_problem(answer, 422, "Invalid value", "headers.If-Match", "in quotes")
    assert api.get(PATH).json["description"] == "theirs"
    for tags in (*SAME, " * ") if method == "PUT" else ["{}"]:
        now = api.get(PATH).headers["ETag"]
        assert send(api, method, PATH, body, If_Match=tags.format(now)).status_int in (200, 204)


def test_what_would_be_refused_anyway_is_refused_for_that_reason(api, tag):
    # RFC 9110, section 13.2.1
    for method, body in CHANGES:
        assert send(api, method, "/stations/7", body, If_Match='"x"').status_int == 404
        assert send(api, method, "/stations/7", body, If_Match="*").status_int == 404
    new_transaction(api)
    assert send(api, "DELETE", PATH, If_Match='"x"').status_int == 409
    assert send(api, "PUT", PATH, {}, If_Match='"x"').status_int == 422
