"""The live page says what is wrong, and stops saying it when it is mended."""

import pytest
from playwright.sync_api import expect

from load import Load
from programs import wait_until
from tab import NOTICES, VERDICT, button, chart, equipment, live, outcome, part, rows


def test_equipment_that_is_stopped_is_said_and_comes_back(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(equipment(page)).to_have_text("Equipment: validator online")
    expect(page.locator(NOTICES)).to_be_empty()
    service.equipment.stop()
    expect(page.locator(NOTICES)).to_contain_text("No equipment is online.")
    expect(equipment(page)).to_have_text("Equipment: validator offline")
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text("PENDING")
    service.equipment.start()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(equipment(page)).to_have_text("Equipment: validator online")
    expect(page.locator(NOTICES)).to_be_empty()
    expect(page.get_by_role("log")).to_contain_text("All is well again.")


def test_each_equipment_is_listed(running, tab, equipment):
    service, page = running("Teste"), tab.page
    equipment(name="second")
    gone = equipment(name="third")
    page.goto(service.url)
    summary = page.locator("#equipment summary")
    expect(summary).to_have_text("Equipment: 3 of 3 online")
    gone.stop()
    expect(summary).to_have_text("Equipment: 2 of 3 online")
    summary.click()
    listed = page.locator("#equipment").get_by_role("listitem")
    expect(listed).to_have_text(["second online", "third offline", "validator online"])


def test_a_broker_that_is_killed_is_said_and_comes_back(running, tab, broker):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(part(page, "Broker")).to_contain_text("ok")
    with tab.trouble():  # /readyz says 503
        broker.kill()
        expect(page.locator(NOTICES)).to_contain_text("The broker cannot be used")
        expect(part(page, "Broker")).to_contain_text("unavailable")
        expect(equipment(page)).to_contain_text("unknown")
        expect(part(page, "Database")).to_contain_text("ok")
        button(page, 1).click()
        expect(outcome(page, 1)).to_contain_text("PENDING")
        broker.start()
        expect(outcome(page, 1)).to_contain_text(VERDICT)
        expect(part(page, "Broker")).to_contain_text("ok")
        expect(page.locator(NOTICES)).to_be_empty()


def test_a_service_that_is_away_is_said_and_comes_back(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    page.get_by_label("New station").fill("Hauptbahnhof")
    with tab.trouble():
        service.stop()
        expect(page.locator(NOTICES)).to_contain_text("The service does not answer.")
        expect(part(page, "Service")).to_contain_text("away")
        expect(part(page, "Broker")).to_contain_text("unknown")
        expect(rows(page)).to_have_count(1)  # the last known rows stay
        page.get_by_role("button", name="Create").click()
        expect(page.locator("#new-station-said")).to_contain_text(
            "No answer came. Look whether the station is there"
        )
        service.start()
        expect(part(page, "Service")).to_contain_text("ok")
        expect(page.locator(NOTICES)).to_be_empty()
        live(page)
    page.get_by_role("button", name="Create").click()
    expect(button(page, 2)).to_be_visible()
    button(page, 1).click()
    expect(rows(page)).to_have_count(2)


def test_nothing_that_happened_while_the_stream_was_broken_is_missed(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    live(page)
    with tab.trouble():
        tab.context.set_offline(True)
        service.stop()
        service.start()
        Load(service, total=250).start().join()  # more than one list holds
        wait_until(lambda: not service.get("/transactions?status=PENDING").json["items"], "all are settled")
        tab.context.set_offline(False)
        live(page)
    expect(rows(page)).to_have_count(20)
    newest = service.get("/transactions?limit=200").json
    items = newest["items"] + service.get(newest["next"]).json["items"]
    statuses = [item["status"] for item in items]
    completed, refused = statuses.count("COMPLETED"), statuses.count("ERROR")
    assert completed + refused == 250
    expect(chart(page)).to_have_accessible_name(f"{completed} COMPLETED {refused} ERROR 0 EXPIRED")


@pytest.mark.parametrize("status", [404, 503])
def test_without_events_the_page_asks_and_says_so(running, tab, status):
    service, page = running("Teste", VALIDATOR_DELAY_MS="700"), tab.page
    with tab.trouble():
        problem = {"title": "x", "status": status, "detail": "Too many follow."}
        page.route("**/events", lambda route: route.fulfill(status=status, json=problem))
        page.goto(service.url)
        expect(page.locator(NOTICES)).to_contain_text("No live updates (Too many follow.)")
        expect(part(page, "Updates")).to_contain_text("every 2 s")
        button(page, 1).click()
        expect(outcome(page, 1)).to_contain_text("PENDING")
        page.goto(
            f"{service.url}/?status=EXPIRED"
        )  # what is started here is followed although it is not listed
        button(page, 1).click()
        expect(outcome(page, 1)).to_contain_text(VERDICT)
        service.post("/stations", {"description": "Hauptbahnhof"})
        expect(button(page, 2)).to_be_visible()
        page.unroute("**/events")
        live(page)
        expect(page.locator(NOTICES)).to_be_empty()


def test_a_slow_network_is_not_taken_for_a_service_that_is_away(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    live(page)
    network = tab.context.new_cdp_session(page)
    network.send("Network.enable")
    slow = {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1, "latency": 6000}
    network.send("Network.emulateNetworkConditions", slow)
    button(page, 1).click()
    expect(page.locator(NOTICES)).to_have_text(
        "The network or the service is slow. Still waiting for an answer."
    )
    expect(part(page, "Service")).to_contain_text("ok")
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(page.locator(NOTICES)).to_be_empty()
    page.reload()
    expect(rows(page)).to_have_count(1)
    news = page.get_by_role("log").inner_text()
    assert "does not answer" not in news


def test_an_answer_that_gets_lost_starts_nothing_twice(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)

    def lose(route):
        route.fetch()
        route.abort()

    page.route("**/transactions", lose, times=1)
    with tab.trouble():
        button(page, 1).click()
        expect(page.get_by_text("it will not be started twice.").first).to_be_visible()
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    assert len(service.get("/transactions").json["items"]) == 1


def test_an_answer_that_comes_after_its_event_hides_no_verdict(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    live(page)

    def delay(route):
        answer = route.fetch()
        expect(rows(page).first).to_contain_text(VERDICT)
        route.fulfill(response=answer)

    page.route("**/transactions", delay, times=1)
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(rows(page).first).to_contain_text(VERDICT)


def test_a_list_that_was_refused_is_asked_for_again(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    live(page)
    problem = {"title": "x", "status": 503, "detail": "The database cannot be read now."}
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    expect(rows(page)).to_have_count(1)
    page.route("**/transactions?status=*", lambda route: route.fulfill(status=503, json=problem), times=1)
    with tab.trouble():
        page.get_by_role("checkbox", name="EXPIRED").check()
        expect(page.locator(NOTICES)).to_have_text("The database cannot be read now.")
        expect(page.locator(NOTICES)).to_be_empty()
    expect(page.locator("#no-transactions")).to_have_text("No transaction matches.")


def test_a_filter_that_the_service_refuses_is_said_until_it_is_changed(running, tab):
    service, page = running("Teste"), tab.page
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    with tab.trouble():  # 422
        page.goto(f"{service.url}/?status=DONE&created_from=yesterday")
        expect(page.locator(NOTICES)).to_contain_text("query.")
        page.get_by_role("button", name="Clear").click()
        expect(page.locator(NOTICES)).to_be_empty()
    expect(rows(page)).to_have_count(1)


def test_a_database_that_cannot_be_read_is_said(running, tab, tmp_path):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(part(page, "Database")).to_contain_text("ok")
    with tab.trouble():
        service.stop()
        for file in tmp_path.glob("energy2go.db*"):
            file.unlink()
        (tmp_path / "energy2go.db").write_text("This is no database. " * 1000)
        service.start()
        expect(page.locator(NOTICES)).to_contain_text("The database cannot be used")
        expect(part(page, "Database")).to_contain_text("unavailable")
        expect(part(page, "Service")).to_contain_text("ok")
