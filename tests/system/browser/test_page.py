"""The live page in a real browser."""

from statistics import median

import pytest
from playwright.sync_api import expect

from tab import VERDICT, button, outcome, rows, shown, took


def test_a_transaction_turns_from_pending_to_its_verdict_without_a_reload(running, tab):
    service, page = running("Teste", VALIDATOR_DELAY_MS="700"), tab.page
    page.goto(service.url)
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
    expect(rows(page).first).to_contain_text(stored["id"])
    # Screen readers announce both.
    news = page.get_by_role("log").locator("p")
    expect(news.filter(has_text="Teste: PENDING")).to_have_count(1)
    expect(news.filter(has_text=f"Teste: {stored['status']} after ")).to_have_count(1)
    (waited,) = tab.asked("GET", f"/transactions/{stored['id']}")
    assert waited.headers["prefer"].startswith("wait=")
    assert page.evaluate("window.loaded") == "once"


def test_what_others_do_appears_by_itself(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(page.locator("#no-transactions")).to_be_visible()
    service.post("/transactions", {"station_id": 1})
    service.post("/stations", {"description": "Hauptbahnhof"})
    expect(rows(page).first).to_contain_text(VERDICT)
    expect(button(page, 2)).to_be_visible()
    service.request("PATCH", "/stations/2", {"description": "Flughafen"})
    expect(page.get_by_role("listitem").filter(has=button(page, 2))).to_contain_text("Flughafen")
    expect(page.get_by_label("Station", exact=True).locator("option")).to_have_text(
        ["all", "1 · Teste", "2 · Flughafen"]
    )
    service.request("DELETE", "/stations/2")
    expect(button(page, 2)).to_have_count(0)


def test_the_latest_transactions_are_summed_up_filtered_and_paged(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    for number in range(27):
        service.post("/transactions", {"station_id": 1 + number % 2}, Prefer="wait=5")
    page.goto(service.url)
    latest = service.get("/transactions?limit=20").json["items"]
    statuses = [transaction["status"] for transaction in latest]
    times = [took(transaction) for transaction in latest]
    expect(rows(page)).to_have_count(20)
    said = page.locator("#summary").inner_text()
    for status in set(statuses):
        assert f"{statuses.count(status)} {status}" in said
    assert shown(said.partition(", slowest")[0]) == pytest.approx(median(times), abs=0.5)
    assert shown(said) == pytest.approx(max(times), abs=0.5)

    pages = page.get_by_role("group", name="Pages of transactions")
    pages.get_by_role("button", name="Older").click()
    expect(rows(page)).to_have_count(7)
    expect(pages.get_by_role("button", name="Older")).to_be_disabled()
    expect(pages.get_by_role("button", name="Older")).to_be_focused()
    pages.get_by_role("button", name="Newer").click()
    expect(rows(page)).to_have_count(20)

    page.get_by_label("Station", exact=True).select_option("2")
    expect(rows(page)).to_have_count(13)
    expect(rows(page).filter(has_text="Teste")).to_have_count(0)
    page.get_by_label("Status").select_option("ERROR")
    refused = service.get("/transactions?station_id=2&status=ERROR").json["items"]
    expect(page.locator("#summary")).to_contain_text(f"On this page: {len(refused)} ERROR · median")
    expect(rows(page)).to_have_count(len(refused))
    page.get_by_label("Status").select_option("EXPIRED")
    expect(page.locator("#no-transactions")).to_be_visible()


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
    with tab.trouble():  # 422
        page.get_by_label("New station").fill("x" * 256)
        page.get_by_role("button", name="Create").click()
        expect(page.locator("#new-station-said")).to_contain_text("body.description")
    expect(page.get_by_label("New station")).to_have_value("x" * 256)


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
    expect(page.locator("#known option")).to_have_text("1 · " + MARKUP[:40])
    expect(page.get_by_role("log")).to_contain_text(MARKUP)
    expect(page.locator("main img, main script, #live img")).to_have_count(0)
    assert page.title() == title
