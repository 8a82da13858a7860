"""The live page says what is wrong, and stops saying it when it is mended."""

import re

import pytest
from playwright.sync_api import expect

from load import Load
from programs import Equipment, Nginx, wait_until
from tab import NOTICES, VERDICT, button, chart, hide, live, outcome, part, row, rows

ALL_IS_WELL = re.compile("^energy2go$")


def test_trouble_is_shown_on_top_in_the_title_and_in_the_icon(running, tab, programs):
    """Through nginx, in a window that is not looked at, while equipment and broker end and come back."""
    service, page = running("Teste"), tab.page
    programs.append(Nginx([service]))
    page.goto(programs[-1].start().url)
    expect(part(page, "Equipment").first).to_contain_text("Equipment validator online")
    expect(page).to_have_title(ALL_IS_WELL)
    live(page)
    hide(page, True)
    asked = tab.at_rest()
    service.equipment.stop()
    expect(page).to_have_title("▲ Equipment validator offline · energy2go")
    expect(page.locator("#icon")).to_have_attribute("href", re.compile("^data:image/svg"))
    expect(part(page, "Equipment").first).to_contain_text(re.compile(r"offline since \d\d:\d\d:\d\d"))
    expect(part(page, "Equipment").locator("b").first).to_have_attribute("data-look", "bad")
    expect(page.locator(NOTICES)).to_contain_text("No equipment is online.")
    service.broker.kill()
    expect(page).to_have_title("▲ Broker unavailable · energy2go")
    expect(page.locator(NOTICES)).to_contain_text("The broker can't be used")
    expect(part(page, "Equipment").first).to_contain_text("unknown")
    since = [request.url for request in tab.requests[asked:] if not request.url.startswith("data:")]
    assert since == []  # the events said all of that
    hide(page, False)
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text("PENDING")
    service.broker.start()
    service.equipment.start()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(page).to_have_title(ALL_IS_WELL)
    expect(page.locator("#icon")).to_have_attribute("href", "/static/icon.svg")
    expect(page.locator(NOTICES)).to_be_empty()
    expect(page.get_by_role("log")).to_contain_text("Everything works again.")


def test_each_equipment_is_listed(running, tab, programs):
    service, page = running("Teste", LOG_LEVEL="INFO"), tab.page  # its own, as the broker retains the names
    for name in ("second", "third"):
        programs.append(Equipment(service.folder, service.broker, name=name).start())
    page.goto(service.url)
    expect(part(page, "Equipment").first).to_contain_text("3 of 3 online")
    programs[-1].stop()
    expect(part(page, "Equipment").first).to_contain_text("2 of 3 online")
    page.locator("#equipment summary").click()
    listed = page.locator("#equipment").get_by_role("listitem")
    expect(listed).to_have_text(["second online", "third offline", "validator online"])


def test_a_service_that_is_away_is_said_and_comes_back(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    page.get_by_label("New station").fill("Hauptbahnhof")
    live(page)
    with tab.trouble():
        service.stop()
        expect(page.locator(NOTICES)).to_contain_text("The service does not answer.")
        expect(part(page, "Service")).to_contain_text("away")
        expect(part(page, "Broker")).to_contain_text("unknown")
        expect(rows(page)).to_have_count(1)  # the last known rows stay
        expect(part(page, "Service").locator("b")).to_have_attribute("data-look", "bad")
        expect(page).to_have_title("▲ Service away · energy2go")
        page.get_by_role("button", name="Create").click()
        expect(page.locator("#new-station .wrong")).to_contain_text(
            "No answer came. Check whether the station exists"
        )
        button(page, 1).click()
        expect(row(page, 1).locator(".wrong")).to_contain_text("No answer came. Start it again")
        service.start()
        expect(part(page, "Service")).to_contain_text("ok")
        expect(page.locator("#new-station .wrong")).to_be_hidden()
        expect(row(page, 1).locator(".wrong")).to_have_text("It wasn't started.")
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
        page.route("**/*", lambda route: route.abort())
        service.stop()
        service.start()
        Load(service, total=250).start().join()  # more than one list holds
        wait_until(lambda: not service.get("/transactions?status=PENDING").json["items"], "all are settled")
        page.unroute_all()
        live(page)
    expect(rows(page)).to_have_count(20)
    counts = service.get("/transactions/counts").json["items"]
    completed, refused = (sum(item[status] for item in counts) for status in ("COMPLETED", "ERROR"))
    assert completed + refused == 250
    expect(chart(page)).to_have_accessible_name(
        re.compile(f" {completed} COMPLETED {refused} ERROR 0 EXPIRED")
    )


@pytest.mark.parametrize("status", [404, 503])
def test_without_events_the_page_asks_and_says_so(running, tab, status):
    service, page = running("Teste", VALIDATOR_DELAY_MS="700"), tab.page
    with tab.trouble():
        problem = {"title": "x", "status": status, "detail": "Too many follow."}
        page.route("**/events", lambda route: route.fulfill(status=status, json=problem))
        page.goto(service.url)
        expect(page.locator(NOTICES)).to_contain_text("Live updates are down (Too many follow.)")
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
    held = []
    page.route("**/transactions", lambda route: held.append(route), times=1)
    button(page, 1).click()
    slow = "The network or the service is slow. Still waiting for an answer."
    expect(page.locator(NOTICES)).to_have_text(slow)
    expect(part(page, "Service")).to_contain_text("ok")
    held[0].continue_()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(page.locator(NOTICES)).to_be_empty()
    assert "does not answer" not in page.get_by_role("log").inner_text()


def test_an_answer_that_gets_lost_starts_nothing_twice(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)

    live(page)

    def lose(route):
        route.fetch()
        route.abort()

    page.route("**/transactions", lose, times=1)
    with tab.trouble():
        button(page, 1).click()
        # The page looks for it by its key, and finds that it was started.
        expect(page.get_by_role("log")).to_contain_text("it won't start twice.")
        expect(row(page, 1).locator(".wrong")).to_be_hidden()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    button(page, 1).click()
    expect(rows(page)).to_have_count(2)  # a new one
    assert len(service.get("/transactions").json["items"]) == 2


def test_an_answer_that_comes_after_its_event_hides_no_verdict(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    live(page)

    def delay(route):
        answer = route.fetch()
        expect(rows(page).first).to_contain_text(VERDICT)
        route.fulfill(response=answer)

    page.route("**/transactions", delay, times=1)
    with page.expect_response("**/transactions"):
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
        page.get_by_text("Filter", exact=True).click()
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
    service, page = running("Teste", LOG_LEVEL="INFO"), tab.page  # its own, as it ends broken
    page.goto(service.url)
    expect(part(page, "Database")).to_contain_text("ok")
    with tab.trouble():
        service.stop()
        for file in tmp_path.glob("energy2go.db*"):
            file.unlink()
        (tmp_path / "energy2go.db").write_text("This is no database. " * 1000)
        service.start()
        expect(page.locator(NOTICES)).to_contain_text("The database can't be used")
        expect(part(page, "Database")).to_contain_text("unavailable")
        expect(part(page, "Service")).to_contain_text("ok")
