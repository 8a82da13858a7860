"""Stations on the live page: find, create, rename and delete them."""

import re
import sqlite3
from contextlib import closing

from playwright.sync_api import expect

from tab import button, change, live, outcome, row, rows


def numbers(page) -> list[str]:
    """The numbers of the stations that are shown."""
    return page.locator("#stations .number").all_inner_texts()


def test_a_station_is_found_by_its_text_and_by_its_number(running, tab):
    service, page = running(*(f"Depot {number}" for number in range(1, 31)), "Übersee"), tab.page
    page.goto(service.url)
    expect(button(page, 10)).to_be_visible()
    search = page.get_by_label("Find a station")
    search.fill("übersee")
    expect(button(page, 31)).to_be_visible()
    assert numbers(page) == ["31"]
    assert page.url == f"{service.url}/?q=%C3%BCbersee"
    page.reload()
    expect(button(page, 31)).to_be_visible()
    expect(search).to_have_value("übersee")
    search.fill("#25")
    expect(button(page, 25)).to_be_visible()
    assert numbers(page) == [str(number) for number in range(25, 32)]
    search.fill("100%")
    expect(page.locator("#no-stations")).to_have_text("No station matches.")
    search.fill("")
    expect(button(page, 10)).to_be_visible()
    assert page.url == f"{service.url}/"


def test_a_new_station_is_shown_on_whichever_page_it_is(running, tab):
    service, page = running(*(f"Station {number}" for number in range(1, 11))), tab.page
    page.goto(service.url)
    for number in (11, 12):
        expect(page.get_by_label("New station")).to_have_value("")
        page.get_by_label("New station").fill(f"Number {number}")
        page.get_by_role("button", name="Create").click()
        expect(button(page, number)).to_be_visible()
    page.get_by_role("button", name="Previous").click()
    expect(button(page, 1)).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(button(page, 1)).to_have_count(0)
    said = page.locator("#new-station .wrong")
    with tab.trouble():  # 422
        page.get_by_label("New station").fill("x" * 256)
        page.get_by_role("button", name="Create").click()
        expect(said).to_contain_text("body.description")
    expect(page.get_by_label("New station")).to_have_value("x" * 256)
    page.get_by_label("New station").fill("x")
    expect(said).to_be_hidden()  # with its cause


def test_a_station_is_renamed_and_nothing_of_others_is_overwritten_unseen(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    service.post("/transactions", {"station_id": 2}, Prefer="wait=5")
    page.goto(service.url)
    changed = change(page, 2)
    changed.get_by_label("Description").fill("Hauptbahnhof Nord")
    changed.get_by_role("button", name="Rename").click()
    expect(changed.locator(".name")).to_have_text("Hauptbahnhof Nord")
    expect(changed.get_by_role("button", name="Change station")).to_be_focused()
    expect(rows(page).first).to_contain_text("Hauptbahnhof Nord")

    change(page, 2)
    service.request("PATCH", "/stations/2", {"description": "Theirs"})
    changed.get_by_label("Description").fill("Mine")
    with tab.trouble():  # 412
        changed.get_by_role("button", name="Rename").click()
        expect(changed.locator(".wrong")).to_be_visible()
    expect(changed.locator(".name")).to_have_text("Theirs")
    expect(changed.get_by_label("Description")).to_have_value("Mine")
    assert service.get("/stations/2").json["description"] == "Theirs"
    expect(changed.locator(".wrong")).to_contain_text("Someone else renamed it to “Theirs”.")
    changed.get_by_role("button", name="Rename").click()  # now it was seen
    expect(changed.locator(".name")).to_have_text("Mine")
    expect(changed.locator(".wrong")).to_be_hidden()


def test_a_name_that_nobody_touched_stays_as_it_is(running, tab):
    service, page = running("Teste"), tab.page
    with closing(sqlite3.connect(service.folder / "energy2go.db", timeout=15)) as database, database:
        database.execute(
            "UPDATE station SET description = 'two' || char(10) || 'lines'"
        )  # of an older release
    page.goto(service.url)
    changed = change(page, 1)
    expect(changed.get_by_label("Description")).to_have_value("twolines")
    changed.get_by_role("button", name="Rename").click()
    expect(changed.get_by_label("Description")).to_have_count(0)
    tab.at_rest()
    assert tab.asked("PATCH") == []
    assert service.get("/stations/1").json["description"] == "two\nlines"


def test_a_station_is_deleted_if_it_can_be(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.goto(service.url)
    page.on("dialog", lambda dialog: dialog.accept())
    first = change(page, 1)
    expect(first).to_contain_text("It has transactions, so you can't delete it.")
    expect(first.get_by_role("button", name="Delete")).to_have_count(0)
    second = change(page, 2)
    page.get_by_role("button", name="Pause").click()  # it will not hear of the next transaction
    service.post("/transactions", {"station_id": 2}, Prefer="wait=5")
    with tab.trouble():  # 409
        second.get_by_role("button", name="Delete").click()
        expect(second.locator(".wrong")).to_contain_text("has transactions")
    service.post("/stations", {"description": "Depot"})
    page.get_by_role("button", name="Pause").click()
    change(page, 3).get_by_role("button", name="Delete").click()
    expect(row(page, 3)).to_have_count(0)
    expect(page.get_by_label("Find a station")).to_be_focused()
    assert service.get("/stations/3").status == 404


def test_each_station_shows_its_last_transaction_also_after_a_reload(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    page.goto(service.url)
    expect(outcome(page, 1)).to_have_text("No transaction yet")
    live(page)
    asked = len(tab.asked("GET", "/transactions/latest"))
    for _ in range(2):
        last = service.post("/transactions", {"station_id": 2}, Prefer="wait=5").json
    time = page.evaluate("(time) => new Date(time).toLocaleTimeString('en-GB')", last["created"])
    shows = re.compile(rf"^{last['status']} {time}$")
    expect(outcome(page, 2)).to_have_text(shows)
    expect(outcome(page, 1)).to_have_text("No transaction yet")
    assert len(tab.asked("GET", "/transactions/latest")) == asked
    page.reload()
    expect(outcome(page, 2)).to_have_text(shows)
    assert tab.asked("GET", "/transactions/latest")[-1].url.endswith("station_id=1,2")


def test_the_transactions_of_a_station_are_one_click_away(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    for station in (1, 2, 2):
        service.post("/transactions", {"station_id": station}, Prefer="wait=5")
    page.goto(service.url)
    change(page, 2).get_by_role("link", name="Transactions").click()
    expect(rows(page)).to_have_count(2)
    assert page.url == f"{service.url}/?station_id=2"
    live(page)
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    service.post("/transactions", {"station_id": 2}, Prefer="wait=5")
    expect(rows(page)).to_have_count(3)
