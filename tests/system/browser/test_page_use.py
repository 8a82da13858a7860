"""The live page with a token, a keyboard, a narrow window, a slow network, and in a hidden tab."""

import re
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from programs import ROOT
from tab import LONG_WORD, NOTICES, VERDICT, button, hide, live, outcome, part, row, rows


def test_the_token_is_asked_for_once(running, tab):
    service, page = running(API_TOKEN="Schlüssel"), tab.page
    token = page.get_by_label("API token")
    with tab.trouble():  # 401
        page.goto(service.url)
        expect(token).to_be_focused()
        expect(page.locator("#token-said")).to_contain_text("asks for its token")
        asked = tab.at_rest()
        page.evaluate("new Promise((resolve) => setTimeout(resolve, 2500))")  # longer than between two polls
        assert len(tab.requests) == asked
        token.fill("wrong")
        token.press("Enter")
        expect(page.locator("#token-said")).to_contain_text("refuses this token")
        tab.at_rest()
    expect(token).to_be_focused()
    expect(page).to_have_title("Token needed · energy2go")
    expect(part(page, "Service").locator("b")).to_have_text("ok")
    held = []
    # Its answer comes after that to the stream.
    page.route("**/stations?*", lambda route: held.append(route), times=1)
    known = {"Authorization": f"Bearer {'Schlüssel'.encode().decode('latin-1')}"}
    assert service.post("/stations", {"description": "Teste"}, **known).status == 201
    token.fill("Schlüssel")
    page.get_by_role("button", name="Use it").click()
    expect(token).to_be_hidden()
    live(page)  # the stream takes the token too
    held[0].continue_()
    expect(button(page, 1)).to_be_visible()
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)


def test_the_token_is_kept_for_its_tab_and_can_be_forgotten(running, tab):
    service, page = running(API_TOKEN="Schlüssel"), tab.page
    known = {"Authorization": f"Bearer {'Schlüssel'.encode().decode('latin-1')}"}
    assert service.post("/stations", {"description": "Teste"}, **known).status == 201
    token = page.get_by_label("API token")
    with tab.trouble():
        page.goto(service.url)
        token.fill("Schlüssel")
        token.press("Enter")
        expect(token).to_be_hidden()
    button(page, 1).click()
    page.reload()
    expect(rows(page).first).to_contain_text(VERDICT)
    expect(token).to_be_hidden()
    expect(page.locator(NOTICES)).to_be_empty()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    with tab.trouble():
        other = tab.context.new_page()
        other.goto(service.url)
        expect(other.get_by_label("API token")).to_be_visible()
        page.get_by_role("button", name="Forget token").click()
        expect(token).to_be_visible()
        expect(rows(page)).to_have_count(0)
    expect(page.get_by_role("button", name="Forget token")).to_be_hidden()
    assert page.evaluate("sessionStorage.length") == 0


def test_first_content_comes_two_round_trips_after_the_page(running, tab):
    service, page = running("Teste"), tab.page
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    held = []

    def answer_all(last: str) -> set[str]:
        """Let one round trip happen: answer at once what was asked for until now; returns the paths."""
        for _ in range(200):
            page.evaluate("new Promise((resolve) => setTimeout(resolve, 50))")
            paths = {urlsplit(route.request.url).path for route in held}
            if last in paths:
                break
        assert last in paths, paths
        answered, held[:] = held[:], []
        for route in answered:
            route.continue_()
        return paths

    page.route(re.compile("/(static|stations|transactions|readyz|events)"), lambda route: held.append(route))
    page.goto(service.url, wait_until="commit")
    first = answer_all("/static/words.js")
    assert {f"/static/{path.name}" for path in (ROOT / "static").glob("*.[cj]s*")} <= first
    assert {"/readyz", "/stations", "/transactions"} <= answer_all("/events")
    expect(rows(page)).to_have_count(1)
    expect(button(page, 1)).to_be_visible()
    page.unroute_all(behavior="ignoreErrors")


# How it behaves

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


def test_events_move_and_take_nothing_from_the_user(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.goto(service.url)
    expect(rows(page)).to_have_count(1)
    live(page)
    page.get_by_label("New station").fill("Half a wo")
    page.evaluate(OBSERVE)
    with page.expect_response("**/stations?*", timeout=40_000):  # no events say that a station has changed
        pass
    tab.at_rest()
    assert page.evaluate("changes") == []
    service.post("/transactions", {"station_id": 2})
    expect(rows(page)).to_have_count(2)
    expect(rows(page).first).to_contain_text("Hauptbahnhof")
    assert page.evaluate("[...old].every((element) => element.isConnected)")
    expect(page.get_by_label("New station")).to_be_focused()
    page.keyboard.type("rd")
    expect(page.get_by_label("New station")).to_have_value("Half a word")


def test_the_focus_stays_near_when_its_row_leaves_the_page(running, tab):
    service, page = running("Teste"), tab.page
    for _ in range(20):
        service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.goto(service.url)
    live(page)
    rows(page).last.get_by_role("link").focus()
    last = rows(page).last.get_attribute("data-id")
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    expect(page.locator(f"tr[data-id='{last}']")).to_have_count(0)
    expect(rows(page).last.get_by_role("link")).to_be_focused()


def test_nothing_is_asked_or_followed_while_the_page_is_paused(running, tab):
    service, page = running("Teste"), tab.page
    page.clock.install()
    page.goto(service.url)
    live(page)
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    expect(part(page, "Updates").locator("b")).to_have_text("paused")
    expect(part(page, "Updates").locator("b")).not_to_have_attribute("data-look", "bad")
    expect(page).to_have_title("Paused · energy2go")
    asked = tab.at_rest()
    for _ in range(20):
        page.clock.run_for(3000)
    assert len(tab.requests) == asked
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    expect(rows(page)).to_have_count(0)
    pause.click()
    expect(rows(page)).to_have_count(1)
    live(page)
    expect(page.locator(NOTICES)).to_be_empty()


def test_eight_windows_share_one_stream_and_another_takes_it_over(running, tab):
    service, page = running("Teste"), tab.page
    pages = [page, *(tab.context.new_page() for _ in range(7))]
    for window in pages:
        window.goto(service.url)
        live(window)
    for count in (1, 2, 3):
        streams = tab.asked("GET", "/events")
        assert len(streams) == count
        button(pages[-1], 1).click()
        for window in pages:
            expect(rows(window)).to_have_count(count)
            expect(rows(window).first).to_contain_text(VERDICT)
        leader = streams[-1].frame.page
        pages.remove(leader)
        leader.close()
        for _ in range(100):
            pages[0].evaluate("new Promise((resolve) => setTimeout(resolve, 100))")
            if len(tab.asked("GET", "/events")) > count:
                break
    button(pages[-1], 1).click()
    for window in pages:
        expect(rows(window)).to_have_count(4)
        expect(part(window, "Updates")).to_contain_text("live")


def test_without_locks_each_window_follows_while_it_is_seen(running, tab):
    service, page = running("Teste"), tab.page
    tab.context.add_init_script("Object.defineProperty(navigator, 'locks', { value: undefined })")
    other = tab.context.new_page()
    for window in (page, other):
        window.goto(service.url)
        live(window)
    assert len(tab.asked("GET", "/events")) == 2
    hide(other, True)
    expect(part(other, "Updates")).to_contain_text("paused")
    button(page, 1).click()
    expect(rows(page).first).to_contain_text(VERDICT)
    expect(rows(other)).to_have_count(0)
    hide(other, False)
    expect(rows(other).first).to_contain_text(VERDICT)
    live(other)


def tab_to(page, target) -> None:
    """Press Tab until this has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if target.evaluate("(element) => element === document.activeElement"):
            return
    raise AssertionError(f"not reached: {target}")


def test_the_keyboard_is_enough_for_the_stations(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    page.goto(service.url)
    expect(button(page, 1)).to_be_visible()
    live(page)
    tab_to(page, button(page, 1))
    page.keyboard.press("Enter")
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(button(page, 1)).to_be_focused()
    tab_to(page, row(page, 2).get_by_role("button", name="Change station"))
    page.keyboard.press("Enter")
    expect(row(page, 2).get_by_label("Description")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("Flughafen")
    page.keyboard.press("Enter")
    expect(page.locator("#stations")).to_contain_text("Flughafen")
    tab_to(page, page.get_by_label("New station"))
    page.keyboard.type("Depot")
    page.keyboard.press("Enter")
    expect(button(page, 3)).to_be_visible()
    expect(page.get_by_label("New station")).to_be_focused()


def test_the_keyboard_is_enough_for_the_list(running, tab):
    service, page = running("Teste"), tab.page
    service.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    page.goto(service.url)
    expect(rows(page)).to_have_count(1)
    live(page)
    tab_to(page, page.locator("#filter summary"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("spinbutton", name="Station"))
    page.keyboard.type("1")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("station_id=1"))
    tab_to(page, page.get_by_role("checkbox", name="EXPIRED"))
    page.keyboard.press("Space")
    expect(page.locator("#no-transactions")).to_be_visible()
    page.keyboard.press("Space")
    link = rows(page).first.get_by_role("link")
    tab_to(page, link)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(link).to_be_focused()
    page.reload()
    expect(link).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the transactions")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(link).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_axe_finds_nothing_and_everything_fits(running, tab, width, scheme):
    service, page = running("Teste", LONG_WORD, VALIDATION_RETRY="1", VALIDATION_TIMEOUT="3"), tab.page
    for number in range(25):
        service.post("/transactions", {"station_id": 1 + number % 2}, Prefer="wait=5")
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.goto(service.url)
    live(page)
    stations, filters = page.locator("summary").filter(has_text="Stations"), page.locator("#filter summary")
    expect(page.get_by_role("spinbutton", name="Station")).to_be_hidden()
    filters.click()
    if width < 640:  # a phone
        expect(button(page, 1)).to_be_hidden()
        check(page, width)
        stations.click()
    service.equipment.stop()
    button(page, 2).click()
    page.get_by_role("button", name="Change station 1").click()
    expect(outcome(page, 2)).to_contain_text("PENDING")
    expect(page.locator(NOTICES)).to_be_visible()
    check(page, width)
    expect(outcome(page, 2)).to_contain_text("EXPIRED")
    name = page.locator("#stations .name").nth(1)
    assert name.bounding_box()["height"] < 90  # three lines; the title has the whole name
    assert name.get_attribute("title") == LONG_WORD
    rows(page).first.click()
    expect(page.get_by_role("button", name="Ask again")).to_be_visible()
    check(page, width)


def test_there_is_space_for_what_one_watches(running, tab):
    service, page = running(), tab.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(service.url)
    expect(page.locator("#no-stations")).to_have_text("There is no station yet. Create the first one here.")
    expect(page.get_by_label("New station")).to_be_visible()
    expect(page.locator("#no-transactions")).to_contain_text("Create a station to begin.")
    page.get_by_label("New station").fill("Teste")
    page.get_by_role("button", name="Create").click()
    expect(page.locator("#no-transactions")).to_contain_text("Press Start beside a station.")
    for _ in range(20):
        service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.set_viewport_size({"width": 1440, "height": 900})
    expect(rows(page)).to_have_count(20)
    expect(rows(page).last).to_be_in_viewport(ratio=1)
    page.set_viewport_size({"width": 1900, "height": 900})
    assert page.locator("main").bounding_box()["width"] > 1700


TOO_SMALL = """(controls) => controls.filter((control) => {
    const { width, height } = control.getBoundingClientRect();
    return Math.min(width, height) < (control.type === "checkbox" ? 16 : 24); // its label counts too
}).map(({ outerHTML }) => outerHTML)"""


def check(page, width: int) -> None:
    """Nothing is cut off, too small to be pressed, or against the rules that axe knows."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    controls = page.locator("button:visible, input:visible, summary:visible")
    assert controls.evaluate_all(TOO_SMALL) == []
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
