"""X-Request-ID: every answer has one, and so have the log lines of that request."""

from calls import at_once, every_path, new_station, send

GIVEN = ["Z9._-", "0" * 64, "01a20ba3-dd5d-70fd-810d-baf08fa0945c"]
NOT_TAKEN = ["", "0" * 65, "a b", "a,b", "ü", "a\tb", "a/b", "a=1", '"a"']


def test_an_id_that_is_given_is_in_the_answer(api):
    new_station(api)
    for number, (path, methods) in enumerate([*every_path().items(), ("/nope", ["GET"])]):
        for method in (*methods, "OPTIONS", "TRACE"):
            given = GIVEN[number % len(GIVEN)]
            answer = send(api, method, path, X_Request_ID=given)
            assert answer.headers["X-Request-ID"] == given, (method, path)


def test_an_id_that_could_not_stand_in_a_log_is_replaced(api):
    answers = [send(api, "GET", "/stations", X_Request_ID=given) for given in NOT_TAKEN * 2]
    ids = {answer.headers["X-Request-ID"] for answer in answers}
    assert len(ids - {*NOT_TAKEN}) == len(answers)
    assert {len(one) for one in ids} == {16}


def test_requests_at_once_do_not_mix_up_their_ids(api):
    ids = [f"request-{number}" for number in range(16)]

    def create():
        wanted = ids.pop()
        answer = send(api, "POST", "/stations", {"description": wanted}, X_Request_ID=wanted)
        return answer.headers["X-Request-ID"] == wanted == answer.json["description"]

    assert all(at_once(16, create))
