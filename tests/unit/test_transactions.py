"""Transactions over HTTP."""

import re
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from calls import UNKNOWN, assert_problem, new_station, new_transaction, send, service, settle
from kit.storage import execute
from programs import wait_until


def test_a_transaction_reads_as_it_was_created(api):
    new_station(api, "outra")
    new_station(api)
    answer = api.post_json("/transactions", {"station_id": 2}, status=201)
    transaction = answer.json
    assert transaction.keys() == {
        *("id", "station", "status", "created", "updated", "attempts"),
        *("asked", "expires", "reason", "equipment"),
    }
    assert UUID(transaction["id"]).version == 7
    assert transaction["station"] == {"id": 2, "description": "Teste"}
    assert transaction["status"] == "PENDING"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", transaction["created"])
    assert transaction["updated"] == transaction["created"]
    assert (transaction["attempts"], transaction["asked"], transaction["expires"]) == (0, None, None)
    assert (transaction["reason"], transaction["equipment"]) == (None, None)
    assert answer.headers["Location"] == f"/transactions/{transaction['id']}"
    assert "Preference-Applied" not in answer.headers
    assert api.get(answer.headers["Location"]).json == transaction
    assert api.get("/transactions").json == {"items": [transaction], "next": None}


def test_a_transaction_reads_as_the_equipment_said(api):
    new_station(api)
    texts = {"reason": "já está 🔋", "equipment": "validator-1"}
    for verdict in ("COMPLETED", "ERROR"):
        created = new_transaction(api)
        settle(created["id"], verdict, **texts)
        settled = api.get(f"/transactions/{created['id']}").json
        assert settled == created | texts | {"status": verdict, "updated": settled["updated"]}
        assert api.get("/transactions").json["items"][0] == settled
        assert settled["updated"] >= settled["created"]
        for other in ("COMPLETED", "ERROR"):
            settle(created["id"], other, reason="another", equipment="another")
        send(api, "PUT", "/stations/1", {"description": verdict})
        found = api.get(f"/transactions/{created['id'].upper()}").json
        assert found == settled | {"station": {"id": 1, "description": verdict}}


TEXTS = [None, 5, 10**400, True, ["x"], {"x": 1}, "a\0b", "\ud83d", "x" * 256, "", '"', "{}?%s"]


def test_a_verdict_counts_whatever_its_texts_are(api, caplog):
    new_station(api)
    for text in TEXTS:
        caplog.clear()
        keys = [new_transaction(api)["id"] for _ in range(2)]
        settle(keys[0], reason=text, equipment="one 🔋 at C:\\ud800")
        settle(keys[1], equipment=text)
        usable = isinstance(text, str) and text.isascii() and "\0" not in text
        shown = (text[:255] or None) if usable else None
        found = [api.get(f"/transactions/{key}").json for key in keys]
        assert [(one["status"], one["reason"], one["equipment"]) for one in found] == [
            ("COMPLETED", shown, "one 🔋 at C:\\ud800"),
            ("COMPLETED", None, shown),
        ]
        said = [record.getMessage() for record in caplog.records if record.name == "mqtt_listener"]
        ignored = [line for line in said if " is ignored: " in line]
        assert len(ignored) == (0 if usable or text is None else 2)
        assert all(key in line for key, line in zip(keys, ignored, strict=False))


def test_a_transaction_that_does_not_exist_is_not_found_and_needs_a_station(api):
    answer = send(api, "POST", "/transactions", {"station_id": 7})
    assert_problem(answer, 422, "No station", "body.station_id", "no station 7")
    assert api.get("/transactions").json["items"] == []
    for method, end in (("GET", ""), ("POST", "/retry")):
        answer = send(api, method, f"/transactions/{UNKNOWN}{end}", Prefer="wait=30")
        assert_problem(answer, 404, "Not found", UNKNOWN)
    assert send(api, "POST", "/transactions/x/retry").status_int == 422
    assert send(api, "GET", f"/transactions/{UNKNOWN}/retry").status_int == 405


# Retries


def expire() -> None:
    execute(service().store.database, """UPDATE "transaction" SET status = 'EXPIRED', retry_at = NULL""")
    service().store.database.close()


def test_a_retry_answers_with_the_transaction_and_waits_if_asked_to(api):
    new_station(api)
    key = new_transaction(api)["id"]
    path = f"/transactions/{key}/retry"
    assert_problem(send(api, "POST", path), 409, "Not expired", key, "PENDING", "EXPIRED")
    expire()
    answer = send(api, "POST", path)
    assert (answer.status_int, answer.json["status"]) == (200, "PENDING")
    assert answer.json == api.get(f"/transactions/{key}").json
    expire()
    with ThreadPoolExecutor() as pool:
        held = pool.submit(send, api, "POST", path + "/", Prefer="wait=30")
        wait_until(lambda: service().changes.clients["waits"], "it waits")
        settle(key, "ERROR")
        answer = held.result(60)
    assert (answer.json["status"], answer.headers["Preference-Applied"]) == ("ERROR", "wait=30")
