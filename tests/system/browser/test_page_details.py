"""The details of a transaction on the live page."""

import re
from datetime import datetime

from playwright.sync_api import expect

from tab import VERDICT, button, live, outcome, rows

SHORT = {"VALIDATION_RETRY": "1", "VALIDATION_TIMEOUT": "3"}


def field(page, name: str):
    """What the details say of this field."""
    return page.locator(f"dt:text-is('{name}') + dd")


def test_a_row_opens_the_details_and_back_and_reload_keep_them(running, tab):
    service, page = running("Teste"), tab.page
    for _ in range(3):
        service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    stored = service.get("/transactions").json["items"][1]
    page.goto(service.url)
    rows(page).nth(1).locator(".station").click()  # anywhere in the row
    details = page.get_by_role("dialog", name="Transaction")
    expect(details).to_be_visible()
    expect(details.locator("#id")).to_have_text(stored["id"])
    expect(field(page, "Station")).to_have_text("1 · Teste")
    expect(field(page, "Status")).to_have_text(stored["status"])
    expect(field(page, "Attempts")).to_have_text("1")
    for name in ("created", "asked", "updated"):
        milliseconds = datetime.fromisoformat(stored[name]).microsecond // 1000
        expect(field(page, name.capitalize())).to_have_text(re.compile(rf":\d\d\.{milliseconds:03}$"))
    assert page.url == f"{service.url}/?transaction={stored['id']}"
    page.reload()
    expect(details.locator("#id")).to_have_text(stored["id"])
    page.go_back()
    expect(details).to_be_hidden()
    page.go_forward()
    expect(details).to_be_visible()
    details.get_by_role("button", name="Close").click()
    expect(details).to_be_hidden()
    expect(page).to_have_url(f"{service.url}/")
    page.go_forward()  # to close was to go back
    expect(details).to_be_visible()


def test_the_id_is_copied(running, tab):
    service, page = running("Teste"), tab.page
    stored = service.post("/transactions", {"station_id": 1}, Prefer="wait=5").json
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{service.url}/?transaction={stored['id']}")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_focused()
    assert page.evaluate("navigator.clipboard.readText()") == stored["id"]
    # Over plain HTTP, on a host that is not this one, there is no clipboard for scripts.
    expect(page.get_by_role("button", name="Copy", exact=True)).to_be_visible()
    page.evaluate("""navigator.clipboard.writeText("other").then(() => {
        window.read = navigator.clipboard.readText.bind(navigator.clipboard);
        Object.defineProperty(navigator, "clipboard", { value: undefined });
    })""")
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("read()") == stored["id"]


def test_the_details_count_down_and_an_expired_transaction_can_be_asked_again(running, tab):
    service, page = running("Teste", **SHORT), tab.page
    service.equipment.stop()
    page.goto(service.url)
    live(page)
    button(page, 1).click()
    rows(page).first.click()
    expect(field(page, "Status")).to_have_text("PENDING")
    expect(field(page, "Expires in")).to_contain_text(re.compile(r"^[0-3] s \("))
    again = page.get_by_role("button", name="Ask again")
    expect(again).to_be_hidden()
    expect(field(page, "Status")).to_have_text("EXPIRED")
    expect(field(page, "Expires in")).to_have_text("\N{EN DASH}")
    expect(rows(page).first).to_contain_text("EXPIRED")
    again.click()
    expect(field(page, "Status")).to_have_text("PENDING")
    expect(again).to_be_hidden()
    service.equipment.start()
    expect(field(page, "Status")).to_have_text(VERDICT)
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(page.get_by_role("log")).to_contain_text(re.compile("Teste: (COMPLETED|ERROR)"))


def test_a_refused_retry_is_said(running, tab):
    service, page = running("Teste", **SHORT), tab.page
    service.equipment.stop()
    stored = service.post("/transactions", {"station_id": 1}, Prefer="wait=20").json
    page.goto(f"{service.url}/?transaction={stored['id']}")
    again = page.get_by_role("button", name="Ask again")
    expect(again).to_be_visible()
    page.route("**/events", lambda route: route.abort())  # the page hears nothing of what happens next
    with tab.trouble():
        page.reload()
        expect(again).to_be_visible()
        page.route("**/transactions/*", lambda route: route.abort())
        service.equipment.start()
        service.post(f"/transactions/{stored['id']}/retry", None, Prefer="wait=10")
        page.unroute("**/transactions/*")
        expect(again).to_be_hidden()


def test_the_details_of_no_transaction_say_so(running, tab):
    service, page = running("Teste"), tab.page
    with tab.trouble():  # 404
        page.goto(f"{service.url}/?transaction=019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57")
        expect(page.locator("#details-said")).to_contain_text("There is no transaction")
        live(page)
        tab.at_rest()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page).to_have_url(f"{service.url}/")
