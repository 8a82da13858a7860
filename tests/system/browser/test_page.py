"""The live page in a real browser: it follows what happens, and shows what its URL says."""

import re
from collections import Counter
from statistics import median

import pytest
from playwright.sync_api import expect

from programs import wait_until
from tab import VERDICT, button, chart, live, outcome, rows, shown, took

REFRESH = 40_000  # ms in which the page looks for stations again


def test_a_transaction_turns_from_pending_to_its_verdict_without_a_reload(running, tab):
    service, page = running("Teste", VALIDATOR_DELAY_MS="700"), tab.page
    page.goto(service.url)
    live(page)
    page.evaluate("window.loaded = 'once'")
    button(page, 1).click()
    expect(outcome(page, 1)).to_have_text("PENDING ")
    expect(rows(page).first).to_contain_text("PENDING")
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    (stored,) = service.get("/transactions").json["items"]
    expect(outcome(page, 1)).to_contain_text(stored["status"])
    assert shown(outcome(page, 1).inner_text()) == pytest.approx(took(stored), abs=0.5)
    expect(rows(page)).to_have_count(1)
    expect(rows(page).first).to_contain_text(stored["status"])
    # Screen readers announce both.
    news = page.get_by_role("log").locator("p")
    expect(news.filter(has_text="Teste: PENDING")).to_have_count(1)
    expect(news.filter(has_text=f"Teste: {stored['status']} after ")).to_have_count(1)
    assert page.evaluate("window.loaded") == "once"


def test_it_asks_for_nothing_while_it_follows_the_events(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    page.goto(service.url)
    live(page)
    before = tab.at_rest()
    for _ in range(30):
        service.post("/transactions", {"station_id": 2}, Prefer="wait=5")
    expect(rows(page)).to_have_count(20)
    expect(chart(page)).to_have_accessible_name(re.compile(sums(service)))
    assert tab.requests[before:] == []


def sums(service) -> str:
    """What the chart should say."""
    found = Counter(item["status"] for item in service.get("/transactions?limit=200").json["items"])
    return f"{found['COMPLETED']} COMPLETED {found['ERROR']} ERROR {found['EXPIRED']} EXPIRED"


def test_the_chart_counts_what_came_before_the_page_and_what_comes(running, tab):
    service, page = running("Teste"), tab.page
    for _ in range(12):
        service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.goto(service.url)
    expect(chart(page)).to_have_accessible_name(sums(service))
    live(page)
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    expect(chart(page)).to_have_accessible_name(sums(service))
    heights = page.locator("#chart [data-status]").evaluate_all(
        "(bars) => bars.map((b) => b.getBBox().height)"
    )
    assert len([height for height in heights if height > 5]) >= 2


def test_what_others_do_appears_by_itself(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(page.locator("#no-transactions")).to_have_text("There is no transaction yet.")
    live(page)
    service.post("/transactions", {"station_id": 1})
    expect(rows(page).first).to_contain_text(VERDICT)
    service.post("/stations", {"description": "Hauptbahnhof"})
    service.post("/transactions", {"station_id": 2})
    expect(button(page, 2)).to_be_visible(timeout=10_000)  # a transaction of an unknown station
    service.post("/stations", {"description": "Depot"})
    service.request("PATCH", "/stations/1", {"description": "Flughafen"})
    expect(button(page, 3)).to_be_visible(timeout=REFRESH)
    expect(page.locator("#stations")).to_contain_text("Flughafen")
    service.request("DELETE", "/stations/3")
    expect(button(page, 3)).to_have_count(0, timeout=REFRESH)


def test_transactions_are_summed_up_and_paged(running, tab):
    service, page = running("Teste"), tab.page
    for _ in range(45):
        service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    ids = [item["id"] for item in service.get("/transactions?limit=200").json["items"]]
    latest = service.get("/transactions?limit=20").json["items"]
    times = [took(transaction) for transaction in latest]
    page.goto(service.url)
    expect(rows(page)).to_have_count(20)
    said = page.locator("#summary").inner_text()
    for status, count in Counter(item["status"] for item in latest).items():
        assert f"{count} {status}" in said
    assert shown(said.partition(", slowest")[0]) == pytest.approx(median(times), abs=0.5)
    assert shown(said) == pytest.approx(max(times), abs=0.5)

    def listed() -> list[str]:
        return rows(page).evaluate_all("(rows) => rows.map((row) => row.dataset.id)")

    older, newer = page.get_by_role("button", name="Older"), page.get_by_role("button", name="Newer")
    older.dblclick()  # the second click comes too early, and turns no page
    expect(rows(page).first).to_have_attribute("data-id", ids[20])
    older.click()
    expect(rows(page)).to_have_count(5)
    assert listed() == ids[40:]
    expect(older).to_be_disabled()
    expect(older).to_be_focused()
    page.reload()  # it knows the pages before this one
    expect(rows(page)).to_have_count(5)
    newer.click()
    expect(rows(page)).to_have_count(20)
    assert listed() == ids[20:40]
    page.go_back()
    expect(rows(page)).to_have_count(5)
    live(page)
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.go_back()
    expect(rows(page)).to_have_count(20)
    assert listed() == ids[20:40]  # what is new belongs to the first page


def test_filters_are_in_the_url_so_that_back_and_reload_work(running, tab):
    service, page = running("Teste", "Hauptbahnhof", "Bahnhof Süd"), tab.page
    for number in range(24):
        service.post("/transactions", {"station_id": 1 + number % 2}, Prefer="wait=5")
    page.goto(service.url)
    expect(rows(page)).to_have_count(20)
    station = page.get_by_role("combobox", name="Station")
    station.fill("hauptb")
    expect(page.locator("#known option")).to_have_count(1)
    station.press("Enter")
    expect(station).to_have_value("2 · Hauptbahnhof")
    expect(rows(page)).to_have_count(12)
    assert page.url == f"{service.url}/?station_id=2"
    page.get_by_role("checkbox", name="ERROR").check()
    refused = len(service.get("/transactions?station_id=2&status=ERROR").json["items"])
    expect(rows(page)).to_have_count(refused)
    page.get_by_role("checkbox", name="COMPLETED").check()
    expect(rows(page)).to_have_count(12)
    assert page.url == f"{service.url}/?station_id=2&status=COMPLETED%2CERROR"
    page.reload()
    expect(rows(page)).to_have_count(12)
    expect(station).to_have_value("2 · Hauptbahnhof")
    expect(page.get_by_role("checkbox", name="COMPLETED")).to_be_checked()
    page.go_back()
    expect(rows(page)).to_have_count(refused)
    expect(page.get_by_role("checkbox", name="COMPLETED")).not_to_be_checked()
    page.get_by_role("button", name="Clear").click()
    expect(rows(page)).to_have_count(20)
    expect(station).to_have_value("")
    assert page.url == f"{service.url}/"


def test_a_station_is_found_by_its_number_too_and_a_text_that_fits_many_is_said(running, tab):
    service, page = running("Teste", "Hauptbahnhof", "Bahnhof Süd"), tab.page
    service.post("/transactions", {"station_id": 3}, Prefer="wait=5")
    page.goto(service.url)
    station, said = page.get_by_role("combobox", name="Station"), page.locator("#filters-said")
    station.fill("bahnhof")
    station.press("Enter")
    expect(said).to_contain_text("More than one station matches.")
    station.fill("Nirgends")
    expect(said).to_be_hidden()
    station.press("Enter")
    expect(said).to_contain_text("No station matches.")
    station.fill("3")
    station.press("Enter")
    expect(station).to_have_value("3 · Bahnhof Süd")
    expect(said).to_be_hidden()
    expect(rows(page)).to_have_count(1)


def test_a_time_range_is_asked_for_in_local_time(running, tab):
    service, page = running("Teste"), tab.page
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.goto(service.url)
    expect(rows(page)).to_have_count(1)
    page.get_by_label("Created from").fill("2020-03-28T12:00:00")
    expect(page).to_have_url(re.compile("created_from="))
    page.get_by_label("Created to").fill("2020-03-28T13:00:00")
    expect(page.locator("#no-transactions")).to_have_text("No transaction matches.")
    asked = tab.asked("GET", "created_to=")[-1].url
    expected = page.evaluate("new Date('2020-03-28T13:00:00').toISOString().slice(0, 19)")
    assert f"created_to={expected.replace(':', '%3A')}Z" in asked
    live(page)
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.reload()
    expect(page.get_by_label("Created to")).to_have_value("2020-03-28T13:00")
    expect(rows(page)).to_have_count(0)
    page.get_by_label("Created to").fill("")
    expect(rows(page)).to_have_count(2)


def test_a_row_that_no_longer_matches_leaves_the_list(running, tab):
    service, page = running("Teste", VALIDATOR_DELAY_MS="700"), tab.page
    page.goto(f"{service.url}/?status=PENDING")
    live(page)
    button(page, 1).click()
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_have_count(0)
    expect(outcome(page, 1)).to_contain_text(VERDICT)


def test_a_list_that_rows_leave_is_filled_again(running, tab):
    service, page = running("Teste", VALIDATION_RETRY="1", VALIDATION_TIMEOUT="2"), tab.page
    service.equipment.stop()
    for _ in range(22):
        service.post("/transactions", {"station_id": 1})
    page.goto(f"{service.url}/?status=EXPIRED")
    expect(rows(page)).to_have_count(20)
    wait_until(lambda: not service.get("/transactions?status=PENDING").json["items"], "all have expired")
    service.equipment.start()
    live(page)
    expired = [item["id"] for item in service.get("/transactions").json["items"]]
    service.post(f"/transactions/{expired[0]}/retry", None, Prefer="wait=10")
    expect(rows(page).last).to_have_attribute("data-id", expired[20])
    expect(rows(page)).to_have_count(20)


MARKUP = (
    """<img src=x onerror="document.title='run'"></option></select>"""
    """<script>document.title='run'</script>&lt;b&gt;"""
)


def test_what_looks_like_html_stays_text(running, tab):
    service, page = running(), tab.page
    page.goto(service.url)
    title = page.title()
    page.get_by_label("New station").fill(MARKUP)
    page.get_by_role("button", name="Create").click()
    expect(page.locator("#stations .name")).to_have_text(MARKUP)
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(rows(page).locator("bdi")).to_have_text(MARKUP)
    page.get_by_role("combobox", name="Station").focus()
    expect(page.locator("#known option")).to_have_attribute("value", f"1 · {MARKUP}")
    rows(page).first.click()
    expect(page.get_by_role("dialog").locator("bdi")).to_have_text(f"1 · {MARKUP}")
    expect(page.get_by_role("log")).to_contain_text(MARKUP)
    expect(page.locator("main img, main script, #live img, dialog img")).to_have_count(0)
    assert page.title() == title
