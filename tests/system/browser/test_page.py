"""The live page in a real browser: it follows what happens, and shows what its URL says."""

import re
from collections import Counter
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from load import Load
from programs import wait_until
from tab import VERDICT, button, chart, live, outcome, rows, shown, took

STATUSES = ("COMPLETED", "ERROR", "EXPIRED", "PENDING")
REFRESH = 40_000  # ms in which the page looks for stations again


def test_a_transaction_turns_from_pending_to_its_verdict_without_a_reload(running, tab):
    service, page = running("Teste", VALIDATOR_DELAY_MS="700"), tab.page
    page.goto(service.url)
    live(page)
    page.evaluate("window.loaded = 'once'")
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text("PENDING")
    expect(rows(page).first).to_contain_text("PENDING")
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    (stored,) = service.get("/transactions").json["items"]
    expect(outcome(page, 1)).to_contain_text(stored["status"])
    expect(rows(page)).to_have_count(1)
    expect(rows(page).first).to_contain_text(stored["status"])
    assert shown(rows(page).first.inner_text()) == pytest.approx(took(stored), rel=0.06)
    # Screen readers announce both.
    news = page.get_by_role("log").locator("p")
    expect(news.filter(has_text="Teste: PENDING")).to_have_count(1)
    expect(news.filter(has_text=f"Teste: {stored['status']} after ")).to_have_count(1)
    assert page.evaluate("window.loaded") == "once"


def test_it_asks_for_nothing_but_counts_while_it_follows_the_events(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    page.goto(service.url)
    live(page)
    before = tab.at_rest()
    for _ in range(30):
        service.post("/transactions", {"station_id": 2}, Prefer="wait=5")
    expect(rows(page)).to_have_count(20)
    expect(chart(page)).to_have_accessible_name(sums(service))
    assert {urlsplit(request.url).path for request in tab.requests[before:]} == {"/transactions/counts"}


def sums(service) -> str:
    """What the chart should say."""
    found = Counter(item["status"] for item in service.get("/transactions?limit=200").json["items"])
    return f"Last 10 minutes: {' '.join(f'{found[status]} {status}' for status in STATUSES)}"


def test_the_counts_are_true_also_after_a_reload_and_lead_to_what_they_count(running, tab):
    service, page = running("Teste", VALIDATION_RETRY="1", VALIDATION_TIMEOUT="2"), tab.page
    Load(service, total=230).start().join()  # more than one list holds
    service.equipment.stop()
    service.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    service.equipment.start()
    wait_until(lambda: not service.get("/transactions?status=PENDING").json["items"], "all are settled")
    day = service.get("/transactions/counts").json["items"]
    total = {status: sum(item[status] for item in day) for status in STATUSES}
    assert sum(total.values()) == 231
    name = f"Last 10 minutes: {' '.join(f'{count} {status}' for status, count in total.items())}"
    for load in (lambda: page.goto(service.url), page.reload):
        load()
        expect(chart(page)).to_have_accessible_name(name)
        expect(page.locator("#pending")).to_have_text("PENDING now: 0")
    row = page.locator("#counts").get_by_role("row", name="ERROR")
    expect(row.get_by_role("link")).to_have_text([str(total["ERROR"])] * 2)
    row.get_by_role("link").last.click()
    expect(page.get_by_role("checkbox", name="ERROR")).to_be_checked()
    assert urlsplit(page.url).query.startswith("status=ERROR&created_from=")
    # Each bar says its figures, to the mouse and to the keyboard.
    bar, head = page.get_by_role("slider", name="20 seconds of the chart"), page.locator("#counts th").nth(1)
    bar.focus()
    page.keyboard.press("Home")
    expect(bar).to_have_attribute("aria-valuetext", re.compile("0 COMPLETED 0 ERROR 0 EXPIRED 0 PENDING$"))
    expect(head).to_contain_text(" \N{EN DASH} ")
    page.get_by_label("Find a station").focus()
    expect(head).to_have_text("Last 10 minutes")
    bar.hover(position={"x": 5, "y": 5})
    expect(head).to_contain_text(" \N{EN DASH} ")


def test_what_others_do_appears_by_itself(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(page.locator("#no-transactions")).to_contain_text("There is no transaction yet.")
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


def test_transactions_are_paged(running, tab):
    service, page = running("Teste"), tab.page
    Load(service, total=45).start().join()
    wait_until(lambda: not service.get("/transactions?status=PENDING").json["items"], "all are settled")
    ids = [item["id"] for item in service.get("/transactions?limit=200").json["items"]]
    page.goto(service.url)
    expect(rows(page)).to_have_count(20)

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
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    for number in range(24):
        service.post("/transactions", {"station_id": 1 + number % 2}, Prefer="wait=5")
    page.goto(service.url)
    expect(rows(page)).to_have_count(20)
    open_filter(page)
    station = page.get_by_role("spinbutton", name="Station")
    station.fill("2")
    station.press("Enter")
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
    expect(station).to_have_value("2")  # a filter that is set is not folded away
    expect(page.get_by_role("checkbox", name="COMPLETED")).to_be_checked()
    page.go_back()
    expect(rows(page)).to_have_count(refused)
    expect(page.get_by_role("checkbox", name="COMPLETED")).not_to_be_checked()
    page.get_by_role("button", name="Clear").click()
    expect(rows(page)).to_have_count(20)
    expect(station).to_have_value("")
    assert page.url == f"{service.url}/"


def open_filter(page) -> None:
    """Unfold the filter, which is folded while it is empty."""
    expect(page.get_by_role("spinbutton", name="Station")).to_be_hidden()
    page.get_by_text("Filter", exact=True).click()


def test_a_time_range_is_asked_for_in_local_time(running, tab):
    service, page = running("Teste"), tab.page
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.goto(service.url)
    expect(rows(page)).to_have_count(1)
    open_filter(page)
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
    service, page = running("Teste"), tab.page
    service.equipment.stop()
    page.goto(f"{service.url}/?status=PENDING")
    live(page)
    button(page, 1).click()
    expect(rows(page)).to_have_count(1)
    service.equipment.start()
    expect(rows(page)).to_have_count(0)
    expect(outcome(page, 1)).to_contain_text(VERDICT)


MARKUP = (
    """<img src=x onerror="document.title='run'"></option></select>"""
    """<script>document.title='run'</script>&lt;b&gt;"""
)


def test_rows_do_not_move_while_the_user_does(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    for station in (1, 2, 1):
        service.post("/transactions", {"station_id": station}, Prefer="wait=5")
    page.clock.install()  # time stands still while the mouse moves
    page.goto(service.url)
    expect(rows(page)).to_have_count(3)
    live(page)
    box = rows(page).nth(1).bounding_box()
    looked_at = rows(page).nth(1).get_attribute("data-id")
    page.clock.pause_at(page.evaluate("Date.now() + 1000"))
    for _ in range(3):
        service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    new = page.get_by_role("button", name="3 new")
    for step in range(300):
        page.mouse.move(box["x"] + 50 + step % 20, box["y"] + 8)
        page.clock.run_for(50)
        if new.is_visible():
            break
    expect(rows(page)).to_have_count(3)
    page.mouse.down()
    page.mouse.up()
    opened = lambda: page.clock.run_for(50) or page.locator("#id").text_content() == looked_at  # noqa: E731
    wait_until(opened, "the transaction under the mouse is open")
    page.keyboard.press("Escape")
    page.clock.run_for(50)
    expect(new).to_be_visible()
    page.clock.run_for(3100)
    expect(rows(page)).to_have_count(6)
    expect(new).to_be_hidden()


def test_the_page_is_drawn_from_what_it_knows(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.goto(service.url)
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    live(page)
    drawn = "[stations, transactions, state].map(({ innerHTML }) => innerHTML)"
    asked, before = tab.at_rest(), page.evaluate(drawn)
    page.evaluate("for (const list of [stations, transactions, state]) list.replaceChildren()")
    page.keyboard.press("Shift")
    wait_until(lambda: page.evaluate(drawn) == before, "all is drawn again")
    assert len(tab.requests) == asked


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
    rows(page).first.click()
    expect(page.get_by_role("dialog").locator("bdi").first).to_have_text(f"1 · {MARKUP}")
    expect(page.get_by_role("log")).to_contain_text(MARKUP)
    expect(page.locator("main img, main script, #live img, dialog img")).to_have_count(0)
    assert page.title() == title
