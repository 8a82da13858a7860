"""Swagger UI in a real browser, and the pictures in docs/pictures.

Make the pictures: `PICTURES=docs/pictures .venv/bin/pytest tests/system/browser -k pictures`
"""

import os
import re
from pathlib import Path

from playwright.sync_api import expect

from tab import NOTICES, VERDICT, button, live, outcome, rows


def try_out(page, operation: str, **headers):
    """Execute an operation in Swagger UI with these headers; returns the part that shows the answer."""
    block = page.locator(f"#operations-{operation}")
    block.locator(".opblock-summary-control").click()
    for name, value in headers.items():
        block.get_by_placeholder(name).fill(value)
    block.get_by_role("button", name="Execute").click()
    return block.locator(".live-responses-table .response").first


def test_swagger_ui_creates_a_station_and_a_transaction(running, tab):
    service, page = running(), tab.page
    page.goto(service.url)
    page.get_by_role("link", name="API").click()
    answer = try_out(page, "stations-create_station")
    expect(answer.locator(".response-col_status")).to_contain_text("201")
    expect(answer).to_contain_text('"description": "Teste"')
    answer = try_out(page, "transactions-create_transaction", Prefer="wait=5")
    expect(answer.locator(".response-col_status")).to_contain_text("201")
    expect(answer).to_contain_text(re.compile('"status": "(COMPLETED|ERROR)"'))
    assert len(service.get("/transactions?station_id=1").json["items"]) == 1


def test_swagger_ui_uses_the_token_of_the_page(running, tab):
    service, page = running(API_TOKEN="Schlüssel"), tab.page
    with tab.trouble():  # 401
        page.goto(service.url)
        page.get_by_label("API token").fill("Schlüssel")
    page.get_by_role("button", name="Use it").click()
    live(page)
    page.get_by_role("link", name="API").click()
    answer = try_out(page, "stations-create_station")
    expect(answer.locator(".response-col_status")).to_contain_text("201")


# Pictures


def test_the_pictures_are_of_a_handy_size(running, tab, tmp_path):
    folder = Path(os.environ.get("PICTURES") or tmp_path)
    folder.mkdir(exist_ok=True)
    names = "Teste", "Hauptbahnhof", "Praça da República", "Flughafen", "Depot 3 <hall B>", "Nordring"
    service, page = running(*names, VALIDATION_RETRY="1", VALIDATION_TIMEOUT="4"), tab.page
    for number in range(20):
        service.post("/transactions", {"station_id": 1 + number * number % 6}, Prefer="wait=5")

    def picture(name: str, width: int, height: int, scheme: str) -> None:
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=folder / name, animations="disabled")
        assert (folder / name).stat().st_size < 150_000, name

    page.goto(service.url)
    live(page)
    for station in (2, 4):
        button(page, station).click()
        expect(outcome(page, station)).to_contain_text(VERDICT)
    picture("page.png", 1180, 820, "light")
    service.equipment.stop()
    expect(page.locator(NOTICES)).to_be_visible()
    button(page, 3).click()
    expect(rows(page).first).to_contain_text("EXPIRED")
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    live(page)
    expect(page.locator(NOTICES)).to_be_visible()
    picture("page-narrow.png", 390, 844, "dark")
    rows(page).first.click()
    expect(page.get_by_role("button", name="Ask again")).to_be_visible()
    picture("details.png", 390, 844, "light")
    service.equipment.start()
    page.goto(f"{service.url}/swagger/")
    expect(try_out(page, "transactions-create_transaction", Prefer="wait=5")).to_contain_text(VERDICT)
    page.set_viewport_size({"width": 1000, "height": 800})
    page.locator("textarea").evaluate("(body) => { body.style.minHeight = body.style.height = '5em' }")
    page.locator(".opblock-section-request-body").evaluate("(section) => section.scrollIntoView()")
    picture("swagger.png", 1000, 800, "light")
