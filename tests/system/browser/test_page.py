"""The live page in a real browser: it follows what happens, and shows what its URL says."""

import re
from collections import Counter
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from playwright.sync_api import expect

from installation import every_transaction
from tab import NOTICES, VERDICT, button, chart, field, frozen, hide, live, outcome, part, rows

STATUSES = ("COMPLETED", "ERROR", "EXPIRED", "PENDING")


def listed(page) -> list[str]:
    """The ids of the rows."""
    return rows(page).evaluate_all("(rows) => rows.map((row) => row.dataset.id)")


def test_a_transaction_turns_from_pending_to_its_verdict_without_a_reload(opened, tab):
    shared, page = opened("Teste", "Hauptbahnhof")
    expect(page.locator("#no-transactions")).to_have_text(
        "There is no transaction yet. Press Start beside a station."
    )
    expect(outcome(page, 1)).to_have_text("No transaction yet")
    live(page)
    page.evaluate("window.loaded = 'once'")
    before = tab.at_rest()
    with frozen(shared.equipment):
        button(page, 1).click()
        expect(outcome(page, 1)).to_contain_text("PENDING")
        expect(rows(page)).to_contain_text(["PENDING"])
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    (stored,) = shared.service.get("/transactions").json["items"]
    expect(rows(page)).to_contain_text([f"Teste{stored['status']}"])
    news = page.get_by_role("log").locator("p")  # screen readers announce both
    expect(news.filter(has_text="Teste: PENDING")).to_have_count(1)
    expect(news.filter(has_text=f"Teste: {stored['status']} after ")).to_have_count(1)
    # While it follows the events, it asks for counts, and now and then for stations.
    last = [shared.transact(2).json for _ in range(30)][-1]
    expect(rows(page)).to_have_count(20)
    found = Counter(item["status"] for item in every_transaction(shared.service))
    sums = f"Last 10 minutes: {' '.join(f'{found[status]} {status}' for status in STATUSES)}"
    expect(chart(page)).to_have_accessible_name(sums)
    urls = [request.url for request in tab.requests[before:] if request.method == "GET"]
    asked = {urlsplit(url).path for url in urls if "created_to=" not in url}
    assert {"/transactions/counts"} <= asked <= {"/transactions/counts", "/transactions/latest", "/stations"}
    assert page.evaluate("window.loaded") == "once"
    page.reload()
    expect(chart(page)).to_have_accessible_name(sums)
    time = page.evaluate("(time) => new Date(time).toLocaleTimeString('en-GB')", last["created"])
    expect(outcome(page, 2)).to_have_text(f"{last['status']} {time}")


OBSERVE = """() => {
    window.old = document.querySelectorAll("#transactions tr, #stations > li, #state li, #counts tr");
    window.changes = [];
    const changed = ({ type, oldValue, target, attributeName }) =>
        type !== "attributes" || oldValue !== target.getAttribute(attributeName);
    const element = ({ target }) => target.closest ? target : target.parentElement;
    const seen = (record) => changed(record) && !element(record)?.closest("#counting");
    const note = (all) => changes.push(...all.filter(seen).map((record) => element(record)?.outerHTML));
    const options = { subtree: true, childList: true, characterData: true, attributeOldValue: true };
    new MutationObserver(note).observe(document.querySelector("main"), options);
}"""


def test_what_others_do_appears_by_itself_and_takes_nothing_from_the_user(opened, tab):
    shared, page = opened("Teste", clock=True)
    shared.transact(1)
    expect(rows(page)).to_have_count(1)
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    page.get_by_label("New station").fill("Half a wo")
    tab.at_rest()
    page.evaluate(OBSERVE)

    def later() -> None:
        """Let the page look at the stations: no events say that one has changed."""
        with page.expect_response("**/stations?*"):
            page.clock.fast_forward(31_000)
        tab.at_rest()

    later()
    assert page.evaluate("changes") == []
    shared.station()
    shared.transact(2)  # of a station that the page does not know
    expect(button(page, 2)).to_be_visible()
    expect(rows(page).first).to_contain_text(VERDICT)
    assert page.evaluate("[...old].every((element) => element.isConnected)")
    shared.service.post("/stations", {"description": "Depot"})
    shared.service.request("PATCH", "/stations/1", {"description": "Flughafen"})
    later()
    expect(button(page, 3)).to_be_visible()
    expect(page.locator("#stations")).to_contain_text("Flughafen")
    expect(page.get_by_label("New station")).to_be_focused()
    page.keyboard.type("rd")
    expect(page.get_by_label("New station")).to_have_value("Half a word")


def test_transactions_are_paged(opened):
    shared, page = opened("Teste")
    ids = [shared.transact(1).json["id"] for _ in range(45)][::-1]
    page.reload()
    expect(rows(page)).to_have_count(20)
    older, newer = page.get_by_role("button", name="Older"), page.get_by_role("button", name="Newer")
    older.dblclick()  # the second click comes too early, and turns no page
    expect(rows(page).first).to_have_attribute("data-id", ids[20])
    older.click()
    expect(rows(page)).to_have_count(5)
    assert listed(page) == ids[40:]
    expect(older).to_be_disabled()
    expect(older).to_be_focused()
    page.reload()  # it knows the pages before this one
    expect(rows(page)).to_have_count(5)
    newer.click()
    expect(rows(page)).to_have_count(20)
    assert listed(page) == ids[20:40]
    page.go_back()
    expect(rows(page)).to_have_count(5)
    live(page)
    ids.insert(0, shared.transact(1).json["id"])  # what is new belongs to the first page
    page.go_back()
    expect(rows(page).first).to_have_attribute("data-id", ids[21])
    expect(rows(page)).to_have_count(20)
    page.go_back()
    expect(rows(page).first).to_have_attribute("data-id", ids[0])
    rows(page).last.get_by_role("link").focus()
    ids.insert(0, shared.transact(1).json["id"])
    expect(rows(page).first).to_have_attribute("data-id", ids[0])
    assert listed(page) == ids[:20]
    expect(rows(page).last.get_by_role("link")).to_be_focused()  # its row left: the focus stays near


def test_filters_are_in_the_url_so_that_back_and_reload_work(opened, tab):
    shared, page = opened("Teste", "Hauptbahnhof")
    found = [shared.transact(1 + number % 2).json for number in range(24)]
    refused = sum(one["station"]["id"] == 2 and one["status"] == "ERROR" for one in found)
    expect(rows(page)).to_have_count(20)
    station = page.get_by_role("spinbutton", name="Station")
    expect(station).to_be_hidden()  # the filter is folded while it is empty
    page.get_by_text("Filter", exact=True).click()
    station.fill("2")
    station.press("Enter")
    expect(rows(page)).to_have_count(12)
    page.get_by_role("checkbox", name="ERROR").check()
    expect(rows(page)).to_have_count(refused)
    page.get_by_role("checkbox", name="COMPLETED").check()
    expect(rows(page)).to_have_count(12)
    expect(page).to_have_url(f"{shared.service.url}/?station_id=2&status=COMPLETED%2CERROR")
    page.reload()
    expect(rows(page)).to_have_count(12)
    expect(station).to_have_value("2")
    page.go_back()
    expect(rows(page)).to_have_count(refused)
    expect(page.get_by_role("checkbox", name="COMPLETED")).not_to_be_checked()
    page.get_by_role("button", name="Clear").click()
    expect(rows(page)).to_have_count(20)
    expect(station).to_have_value("")
    expect(page).to_have_url(f"{shared.service.url}/")
    # A time range is asked for in local time.
    page.get_by_label("Created from").fill("2020-03-28T12:00:00")
    expect(page).to_have_url(re.compile("created_from="))
    page.go_back()
    expect(page).to_have_url(f"{shared.service.url}/")
    page.get_by_label("Created to").focus()
    expect(page.get_by_label("Created from")).to_have_value("")
    page.go_forward()
    expect(page.get_by_label("Created from")).to_have_value("2020-03-28T12:00")
    page.get_by_label("Created to").fill("2020-03-28T13:00:00")
    expect(page.locator("#no-transactions")).to_have_text("No transaction matches.")
    expected = page.evaluate("new Date('2020-03-28T13:00:00').toISOString().slice(0, 19)")
    assert f"created_to={expected.replace(':', '%3A')}.999999Z" in tab.asked("GET", "created_from=")[-1].url
    page.reload()
    expect(page.get_by_label("Created to")).to_have_value("2020-03-28T13:00")
    page.get_by_label("Created to").fill("")
    expect(rows(page)).to_have_count(20)
    # A row that no longer matches leaves the list.
    page.goto(f"{shared.service.url}/?status=PENDING")
    live(page)
    with frozen(shared.equipment):
        button(page, 1).click()
        expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_have_count(0)
    expect(outcome(page, 1)).to_contain_text(VERDICT)


def test_rows_do_not_move_while_the_user_does(opened):
    shared, page = opened("Teste", clock=True)
    ids = [shared.transact(1).json["id"] for _ in range(3)]
    expect(rows(page)).to_have_count(3)
    now = datetime.now()
    page.clock.set_fixed_time(now)  # the clock stands still, and timers run
    rows(page).nth(1).hover()
    for _ in range(20):
        shared.transact(1)
    new = page.get_by_role("button", name="20+ new")
    expect(new).to_be_visible()
    assert listed(page) == ids[::-1]
    page.mouse.down()
    page.mouse.up()
    expect(page.locator("#id")).to_have_text(ids[1])
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(new).to_be_visible()
    page.clock.set_fixed_time(now + timedelta(seconds=3))
    expect(rows(page)).to_have_count(20)
    expect(new).to_be_hidden()


def test_a_row_opens_the_details_and_back_and_reload_keep_them(opened, tab):
    shared, page = opened("Teste")
    _, stored, _ = (shared.transact(1).json for _ in range(3))
    expect(rows(page)).to_have_count(3)
    rows(page).nth(1).click()  # anywhere in the row
    details = page.get_by_role("dialog", name="Transaction")
    expect(details.locator("#id")).to_have_text(stored["id"])
    for name in ("created", "asked", "updated"):
        milliseconds = datetime.fromisoformat(stored[name]).microsecond // 1000
        expect(field(page, name.capitalize())).to_have_text(re.compile(rf":\d\d\.{milliseconds:03} UTC$"))
    fields = {"Station": "1 · Teste", "Attempts": "1", "Equipment": "validator"}
    for name, text in (fields | {"Status": stored["status"], "Reason": stored["reason"]}).items():
        expect(field(page, name)).to_have_text(text)
    expect(page).to_have_url(f"{shared.service.url}/?transaction={stored['id']}")
    page.reload()
    expect(details.locator("#id")).to_have_text(stored["id"])
    page.go_back()
    expect(details).to_be_hidden()
    page.go_forward()
    expect(details).to_be_visible()
    details.get_by_role("button", name="Close").click()
    expect(details).to_be_hidden()
    expect(page).to_have_url(f"{shared.service.url}/")
    page.go_forward()  # to close was to go back
    expect(details).to_be_visible()
    page.mouse.click(5, 5)
    expect(details).to_be_hidden()
    expect(page).to_have_url(f"{shared.service.url}/")
    for _ in range(2):  # however often it is opened, and however fast it is clicked
        rows(page).nth(1).get_by_role("link").evaluate("(link) => (link.click(), link.click())")
        expect(details).to_be_visible()
        page.keyboard.press("Escape")
        expect(details).to_be_hidden()
        expect(page).to_have_url(f"{shared.service.url}/")
    with frozen(shared.equipment):
        button(page, 1).click()
        expect(rows(page)).to_have_count(4)
        rows(page).first.click()
        expect(field(page, "Status")).to_have_text("PENDING")
        expect(field(page, "Expires in")).to_contain_text(re.compile(r"^\d+ s \("))
        expect(page.get_by_role("button", name="Ask again")).to_be_hidden()
    expect(field(page, "Status")).to_have_text(VERDICT)


def test_a_transaction_is_found_by_its_id_or_by_its_key(opened, tab):
    shared, page = opened("Teste")
    by_key = shared.transact(1, **{"Idempotency-Key": "order 4711/ä"}).json["id"]
    by_id = shared.transact(1).json["id"]
    find, details = page.get_by_label("Find", exact=True), page.get_by_role("dialog", name="Transaction")
    for text, found in ((" order 4711/ä ", by_key), (f"{by_id} ", by_id), (by_id.upper(), by_id)):
        find.fill(text)
        find.press("Enter")
        expect(details.locator("#id")).to_have_text(found)
        expect(field(page, "Status")).to_have_text(VERDICT)
        page.keyboard.press("Escape")
        expect(details).to_be_hidden()
        expect(page).to_have_url(f"{shared.service.url}/")
    unknown = "019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57"
    with tab.trouble():  # 404, 422
        for text in (unknown, "a,b", ".."):
            find.fill(text)
            expect(page.locator("#lookup .wrong")).to_be_hidden()
            find.press("Enter")
            expect(page.locator("#lookup .wrong")).to_contain_text(
                re.compile("There is no (such )?transaction")
            )
        for text, answer in ((".", "There is no such transaction."), (unknown, "There is no transaction")):
            page.goto(f"{shared.service.url}/?transaction={text}")
            expect(page.locator("#details .wrong")).to_contain_text(answer)
    page.keyboard.press("Escape")
    expect(details).to_be_hidden()
    expect(page).to_have_url(f"{shared.service.url}/")
    page.goto(f"{shared.service.url}/?transaction={by_id.upper()}")
    expect(field(page, "Status")).to_have_text(VERDICT)


def test_nothing_is_asked_or_followed_while_the_page_is_paused(opened, tab):
    shared, page = opened("Teste", clock=True)
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    expect(part(page, "Updates").locator("b")).to_have_text("paused")
    expect(page).to_have_title("Paused · energy2go")
    asked = tab.at_rest()
    page.clock.run_for(60_000)
    assert tab.at_rest() == asked
    shared.transact(1)
    page.get_by_label("Find a station").fill("Depot")  # what the user asks for
    expect(button(page, 1)).to_have_count(0)
    expect(rows(page)).to_have_count(0)
    pause.click()
    expect(rows(page)).to_have_count(1)
    live(page)
    expect(page.locator(NOTICES)).to_be_empty()


def test_eight_windows_share_one_stream_and_another_takes_it_over(opened, tab):
    shared, page = opened("Teste")
    pages = [page, *(tab.context.new_page() for _ in range(7))]
    for window in pages[1:]:
        window.goto(shared.service.url)
        live(window)
    for count in (1, 2):
        streams = tab.asked("GET", "/events")
        assert len(streams) == count
        button(pages[-1], 1).click()
        for window in pages:
            expect(rows(window)).to_have_count(count)
            expect(rows(window).first).to_contain_text(VERDICT)
        if count == 2:
            break
        leader = streams[-1].frame.page
        pages.remove(leader)
        tab.page = pages[0]
        tab.at_rest()
        leader.close()
        tab.wait_until(lambda: len(tab.asked("GET", "/events")) == 2, "another window follows")


def test_without_locks_each_window_follows_while_it_is_seen(running, tab):
    shared, page = running("Teste"), tab.page
    tab.context.add_init_script("Object.defineProperty(navigator, 'locks', { value: undefined })")
    other = tab.context.new_page()
    for window in (page, other):
        window.goto(shared.service.url)
        live(window)
    assert len(tab.asked("GET", "/events")) == 2
    hide(other, True)
    expect(part(other, "Updates")).to_contain_text("paused")
    button(page, 1).click()
    expect(rows(page)).to_contain_text([VERDICT])
    expect(rows(other)).to_have_count(0)
    hide(other, False)
    expect(rows(other)).to_contain_text([VERDICT])
    live(other)
