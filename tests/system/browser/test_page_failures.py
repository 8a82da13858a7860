"""The live page says what is wrong, and recovers."""

from playwright.sync_api import expect

from tab import NOTICE, VERDICT, button, outcome, part, rows


def test_equipment_that_is_stopped_is_said_and_comes_back(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(part(page, "Equipment validator")).to_contain_text("online")
    expect(page.locator(NOTICE)).to_be_hidden()
    service.equipment.stop()
    expect(page.locator(NOTICE)).to_contain_text("No equipment is online.")
    expect(part(page, "Equipment validator")).to_contain_text("offline")
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text("PENDING")
    service.equipment.start()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(part(page, "Equipment validator")).to_contain_text("online")
    expect(page.locator(NOTICE)).to_be_hidden()
    expect(page.get_by_role("log")).to_contain_text("All is well again.")


def test_a_broker_that_is_killed_is_said_and_comes_back(running, tab, broker):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(part(page, "Broker")).to_contain_text("ok")
    with tab.trouble():  # /readyz says 503
        broker.kill()
        expect(page.locator(NOTICE)).to_contain_text("The broker cannot be used")
        expect(part(page, "Broker")).to_contain_text("unavailable")
        expect(part(page, "Equipment")).to_contain_text("unknown")
        expect(part(page, "Database")).to_contain_text("ok")
        button(page, 1).click()
        expect(outcome(page, 1)).to_contain_text("PENDING")
        broker.start()
        expect(outcome(page, 1)).to_contain_text(VERDICT)
        expect(part(page, "Broker")).to_contain_text("ok")
        expect(page.locator(NOTICE)).to_be_hidden()


def test_a_service_that_is_away_is_said_and_comes_back(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    page.get_by_label("New station").fill("Hauptbahnhof")
    with tab.trouble():
        service.stop()
        expect(page.locator(NOTICE)).to_contain_text("The service does not answer.")
        expect(part(page, "Service")).to_contain_text("away")
        expect(part(page, "Broker")).to_contain_text("unknown")
        expect(rows(page)).to_have_count(1)  # the last known rows stay
        page.get_by_role("button", name="Create").click()
        expect(page.locator("#new-station-said")).to_contain_text(
            "No answer came. Look whether the station is there"
        )
        service.start()
        expect(part(page, "Service")).to_contain_text("ok")
        expect(page.locator(NOTICE)).to_be_hidden()
    page.get_by_role("button", name="Create").click()
    expect(button(page, 2)).to_be_visible()
    button(page, 1).click()
    expect(rows(page)).to_have_count(2)


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
        expect(page.locator(NOTICE)).to_contain_text("The database cannot be used")
        expect(part(page, "Database")).to_contain_text("unavailable")
        expect(part(page, "Service")).to_contain_text("ok")
