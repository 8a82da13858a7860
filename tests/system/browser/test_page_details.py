"""The details of a transaction on the live page."""

import re
from datetime import datetime

from playwright.sync_api import expect

from load import Load
from programs import wait_until
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
    rows(page).nth(1).click()  # anywhere in the row
    details = page.get_by_role("dialog", name="Transaction")
    expect(details).to_be_visible()
    expect(details.locator("#id")).to_have_text(stored["id"])
    expect(field(page, "Station")).to_have_text("1 · Teste")
    expect(field(page, "Status")).to_have_text(stored["status"])
    expect(field(page, "Attempts")).to_have_text("1")
    for name in ("created", "asked", "updated"):
        milliseconds = datetime.fromisoformat(stored[name]).microsecond // 1000
        expect(field(page, name.capitalize())).to_have_text(re.compile(rf":\d\d\.{milliseconds:03} UTC$"))
    expect(field(page, "Reason")).to_have_text(stored["reason"])
    expect(field(page, "Equipment")).to_have_text("validator")
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


def test_a_transaction_is_found_by_its_id_or_by_its_key(running, tab):
    service, page = running("Teste"), tab.page
    order = {"Idempotency-Key": "order 4711/ä"}
    (by_key, by_id) = (service.post("/transactions", {"station_id": 1}, **key).json for key in (order, {}))
    page.goto(service.url)
    find, details = page.get_by_label("Find", exact=True), page.get_by_role("dialog", name="Transaction")
    for text, found in (
        (" order 4711/ä ", by_key),
        (f"{by_id['id']} ", by_id),
        (by_id["id"].upper(), by_id),
    ):
        find.fill(text)
        find.press("Enter")
        expect(details.locator("#id")).to_have_text(found["id"])
        expect(field(page, "Status")).to_have_text(VERDICT)
        page.keyboard.press("Escape")
    with tab.trouble():  # 404, 422
        for text in ("no such order", "019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57", "x" * 300, "a,b"):
            find.fill(text)
            find.press("Enter")
            expect(page.locator("#lookup .wrong")).to_contain_text("No transaction has this id")
            find.fill("")
            expect(page.locator("#lookup .wrong")).to_be_hidden()


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


def test_one_button_asks_again_about_all_that_have_expired(running, tab):
    service, page = running("Teste", VALIDATION_RETRY="1", VALIDATION_TIMEOUT="2"), tab.page
    service.equipment.stop()
    page.goto(service.url)
    again = page.get_by_role("button", name="Ask again about all")
    expect(again).to_be_hidden()
    Load(service, total=230).start().join()  # more than one page of the API
    wait_until(lambda: not service.get("/transactions?status=PENDING").json["items"], "all have expired", 30)
    page.goto(f"{service.url}/?status=EXPIRED")
    most, waiting = 0, []

    def hold(route):
        nonlocal most
        waiting.append(route)
        most = max(most, len(waiting))

    page.route("**/retry", hold)
    again.click()
    stop = page.get_by_role("button", name="Stop")
    wait_until(lambda: page.evaluate("0") or len(waiting) == 8, "eight are asked at a time")
    stop.click()
    while waiting:
        waiting.pop().continue_()
    expect(page.locator("#asked")).to_have_text("8 asked again")
    expect(again).to_be_visible()
    assert len(tab.asked("POST", "/retry")) == most == 8
    page.unroute("**/retry")
    service.equipment.start()
    with tab.trouble():  # 409, as the eight may have their verdict
        again.click()
        expect(rows(page)).to_have_count(0)
        expect(page.locator("#asked")).to_have_text(re.compile("^2[23]\\d asked again$"))
    wait_until(
        lambda: not service.get("/transactions?status=EXPIRED,PENDING").json["items"], "all are settled"
    )


def test_the_details_of_no_transaction_say_so(running, tab):
    service, page = running("Teste"), tab.page
    with tab.trouble():  # 404
        page.goto(f"{service.url}/?transaction=019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57")
        expect(page.locator("#details .wrong")).to_contain_text("There is no transaction")
        live(page)
        tab.at_rest()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page).to_have_url(f"{service.url}/")
