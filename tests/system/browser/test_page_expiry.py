"""The live page where transactions expire soon: details, counts, asking again; and its looks."""

import re
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from load import Load
from tab import NOTICES, VERDICT, button, chart, field, live, outcome, rows

OPTIONS = {"VALIDATION_RETRY": "1", "VALIDATION_TIMEOUT": "3"}
LONG_WORD = "Elektrofahrzeugbatteriewechselstation" * 6


def test_an_expired_transaction_can_be_asked_again(opened):
    shared, page = opened("Teste")
    shared.equipment.stop()
    button(page, 1).click()
    rows(page).first.click()
    expect(field(page, "Status")).to_have_text("EXPIRED")
    expect(field(page, "Expires in")).to_have_text("\N{EN DASH}")
    expect(rows(page)).to_contain_text(["EXPIRED"])
    shared.equipment.start()
    shared.ready()
    page.get_by_role("button", name="Ask again").click()
    expect(field(page, "Status")).to_have_text(VERDICT)
    expect(page.get_by_role("button", name="Ask again")).to_be_hidden()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(page.get_by_role("log")).to_contain_text(re.compile("Teste: (COMPLETED|ERROR)"))


def test_one_button_asks_again_about_all_that_have_expired(opened, tab):
    shared, page = opened("Teste")
    shared.equipment.stop()
    Load(shared.service, total=230).start().join()  # more than one page of the API
    tab.wait_until(lambda: shared.status("EXPIRED") == 230, "all have expired")
    expect(chart(page)).to_have_accessible_name("Last 10 minutes: 0 COMPLETED 0 ERROR 230 EXPIRED 0 PENDING")
    expect(page.get_by_role("button", name="Ask again about all")).to_be_hidden()
    # The counts lead to what they count.
    links = page.locator("#counts").get_by_role("row", name="EXPIRED").get_by_role("link")
    expect(links).to_have_text(["230", "230"])
    links.last.click()
    expect(page.get_by_role("checkbox", name="EXPIRED")).to_be_checked()
    assert urlsplit(page.url).query.startswith("status=EXPIRED&created_from=")
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
    page.locator("#counting").dispatch_event("pointerleave", {"pointerType": "touch"})  # after each tap
    tab.at_rest()
    expect(head).to_contain_text(" \N{EN DASH} ")
    # Ask about all.
    held = []
    page.goto(f"{shared.service.url}/?status=EXPIRED")
    page.route("**/retry", lambda route: held.append(route))
    again = page.get_by_role("button", name="Ask again about all")
    again.click()
    tab.wait_until(lambda: len(held) == 8, "eight are asked at a time")
    page.get_by_role("button", name="Stop").click()
    expect(again).to_have_count(0)
    for route in held:
        route.continue_()
    expect(page.locator("#asked")).to_have_text("8 asked again")
    expect(again).to_be_visible()
    assert len(tab.asked("POST", "/retry")) == 8
    page.unroute("**/retry")
    shared.equipment.start()
    shared.ready()
    with tab.trouble():  # 409, as the eight may have their verdict
        again.click()
        expect(page.locator("#asked")).to_have_text(re.compile("^2[23]\\d asked again$"))
    tab.wait_until(lambda: not shared.status("EXPIRED") + shared.status("PENDING"), "all are settled")
    expect(rows(page)).to_have_count(0)


def test_axe_finds_nothing_and_everything_fits(running, tab):
    shared, page = running("Teste", LONG_WORD), tab.page
    for number in range(25):
        shared.transact(1 + number % 2)
    page.set_viewport_size({"width": 320, "height": 800})
    page.goto(shared.service.url)
    live(page)
    expect(button(page, 1)).to_be_hidden()  # folded on a phone
    page.locator("#filter summary").click()
    look(page)
    page.locator("summary").filter(has_text="Stations").click()
    shared.equipment.stop()
    button(page, 2).click()
    page.get_by_role("button", name="Change station 1").click()
    expect(page.locator(NOTICES)).to_contain_text("No equipment is online.")
    expect(outcome(page, 2)).to_contain_text("EXPIRED")
    look(page)
    name = page.locator("#stations .name").nth(1)
    assert name.bounding_box()["height"] < 90  # three lines; the title has the whole name
    expect(name).to_have_attribute("title", LONG_WORD)
    expect(rows(page).first.locator("bdi")).to_have_css("text-overflow", "ellipsis")  # at its own end
    rows(page).first.click()
    expect(page.get_by_role("button", name="Ask again")).to_be_visible()
    look(page)
    page.keyboard.press("Escape")
    # There is space for what one watches.
    page.set_viewport_size({"width": 1440, "height": 900})
    page.get_by_role("button", name="Change station 1").click()
    page.locator("#filter summary").click()
    expect(rows(page).last).to_be_in_viewport(ratio=1)
    page.set_viewport_size({"width": 1900, "height": 900})
    assert page.locator("main").bounding_box()["width"] > 1700


TOO_SMALL = """(controls) => controls.filter((control) => {
    const { width, height } = control.getBoundingClientRect();
    return Math.min(width, height) < (control.type === "checkbox" ? 16 : 24); // its label counts too
}).map(({ outerHTML }) => outerHTML)"""


def look(page) -> None:
    """In windows of each width, nothing is cut off, too small to be pressed, or against the rules of axe."""
    for width, scheme in ((1280, "light"), (390, "light"), (320, "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ends = "document.documentElement.scrollHeight <= Math.max(innerHeight, document.body.offsetHeight)"
        assert page.evaluate(ends)
        controls = page.locator("button:visible, input:visible, summary:visible")
        assert controls.evaluate_all(TOO_SMALL) == []
        if width != 390:
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
