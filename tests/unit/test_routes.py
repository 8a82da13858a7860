"""Every route: trailing slashes, HEAD, other methods, unknown paths."""

from calls import UNKNOWN, assert_problem, every_path, new_station, send


def test_a_trailing_slash_changes_nothing(api):
    bodies = {
        "/stations": {"description": "x"},
        "/stations/1": {"description": "y"},
        "/transactions": {"station_id": 1},
    }
    new_station(api)
    for path, methods in every_path().items():
        for method in sorted(set(methods) - {"DELETE"}):
            body = bodies.get(path) if method != "GET" else None
            plain, slashed = send(api, method, path, body), send(api, method, path + "/", body)
            assert plain.status_int == slashed.status_int
            fine = (422,) if path.endswith("latest") else (200, 201, 503)  # which needs a query
            assert slashed.status_int in fine or UNKNOWN in path, (method, path)
            if method == "GET" and path != "/metrics":  # its numbers change
                assert plain.body == slashed.body
    unused = new_station(api)
    assert send(api, "DELETE", f"/stations/{unused}/").status_int == 204


def test_head_is_get_without_the_body(api):
    new_station(api)
    for path, methods in every_path().items():
        if "GET" in methods:
            get, head = send(api, "GET", path), send(api, "HEAD", path)
            assert head.body == b""
            assert head.status_int == get.status_int
            assert head.headers["Content-Type"] == get.headers["Content-Type"]
            if path not in ("/metrics", "/events"):  # whose length changes, and which has none
                assert head.headers["Content-Length"] == get.headers["Content-Length"]


def allowed(methods) -> str:
    return ", ".join(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])}))


def test_options_lists_the_methods_of_a_path(guarded):
    for path, methods in every_path().items():
        for spelling in (path, path + "/"):
            answer = send(guarded, "OPTIONS", spelling)  # without a token
            assert (answer.status_int, answer.body) == (204, b"")
            assert answer.headers["Allow"] == allowed(methods)
            assert "Content-Type" not in answer.headers
    assert_problem(send(guarded, "OPTIONS", "/nope"), 404, "Not Found")


def test_a_method_that_a_path_does_not_have_is_refused(api):
    new_station(api)
    for path, methods in every_path().items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - set(methods):
            answer = send(api, method, path, {"description": "changed"})
            assert_problem(answer, 405, "Method Not Allowed")
            assert answer.headers["Allow"] == allowed(methods)
    assert api.get("/stations").json["items"] == [{"id": 1, "description": "Teste"}]


ELSEWHERE = (
    "/nope /nope/ /stations/1/x //stations /Stations /stations.json /app.py /.env /static/swagger/start.js"
)
NOT_UTF_8 = "/stations/1%ff /stations/%ff /%ff /swagger/%ff"  # Bottle would drop these bytes


def test_what_is_not_there_is_not_found(api):
    new_station(api)
    for path in [*ELSEWHERE.split(), *NOT_UTF_8.split()]:
        for method in ("GET", "DELETE"):
            assert_problem(send(api, method, path), 404, "Not Found")
    assert api.get("/stations/1").status_int == 200
