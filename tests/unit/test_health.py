"""/healthz and /readyz."""

from calls import UNKNOWN, assert_problem, new_station, send, service, serving
from kit.settings import VERSION


def test_alive_is_not_ready(api):
    answer = api.get("/healthz", status=200)
    assert answer.json == {"status": "ok", "version": VERSION}
    answer = send(api, "GET", "/readyz")
    assert_problem(answer, 503, "Not ready", "broker", "127.0.0.1")
    assert answer.json.keys() == {"type", "title", "status", "detail", "database", "broker", "equipment"}
    assert answer.json["database"] == "ok"
    assert answer.json["equipment"] == {}
    assert answer.headers["Retry-After"] == "5"


def test_without_its_ledger_the_service_is_not_alive(tmp_path):
    with serving(tmp_path) as api:
        new_station(api)
        service().ledger.__exit__()
        assert_problem(send(api, "GET", "/healthz"), 503, "Not running", "ledger")
        answer = send(api, "GET", "/readyz")
        assert_problem(answer, 503, "Not ready", "database", "broker")
        assert "ledger" in answer.json["database"]
        answer = send(api, "POST", "/stations", {"description": "x"})
        assert_problem(answer, 503, "Not stored", "The service is stopping")
        assert api.get("/stations").json["items"] == [{"id": 1, "description": "Teste"}]


def test_without_its_database_the_service_says_so(tmp_path):
    (garbage := tmp_path / "garbage.db").write_text("This is no database. " * 1000)
    with serving(ready=False, database_url=f"sqlite:///{garbage}") as api:
        for path in ("/healthz", "/stations", "/stations/1", "/transactions", f"/transactions/{UNKNOWN}"):
            answer = send(api, "GET", path)
            assert_problem(answer, 503, "Not read", "database")
            assert answer.headers["Retry-After"] == "5"
        answer = send(api, "GET", "/readyz")
        assert_problem(answer, 503, "Not ready", "database", "broker")
        assert answer.json["database"] != "ok"
        assert send(api, "GET", "/swagger/").status_int == 200
        metrics = api.get("/metrics").text  # those that need no database
        assert 'energy2go_ready{part="database"} 0.0' in metrics
        assert "energy2go_pending_transactions" not in metrics
