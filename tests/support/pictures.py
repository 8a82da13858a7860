"""Take the pictures of the page in docs/pictures: `.venv/bin/python tests/support/pictures.py`."""

import random
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from installation import Installation
from programs import ROOT
from tab import QUIET, VERDICT, live, part, rows

STATIONS = "Hauptbahnhof", "Flughafen Nord", "Messe", "Depot West", "Hafen", "Universität"
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SWAGGER = {"width": 1000, "height": 800}


def main() -> None:
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        run = Installation(folder, [])
        for program in (run.broker, run.equipment, run.service):
            ends.callback(program.close)
            program.start()
        run.ready()
        for description in STATIONS:
            run.service.post("/stations", {"description": description})
        playwright = ends.enter_context(sync_playwright())
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), chromium_sandbox=False, args=QUIET
        )
        ends.callback(chromium.close)
        page = chromium.new_page(viewport=DESK)
        page.goto(run.service.url)
        live(page)
        for number in range(90):
            time.sleep(random.random())
            run.service.post("/transactions", {"station_id": 1 + number % 6})
        expect(rows(page)).to_have_count(20)
        page.screenshot(path=ROOT / "docs/pictures/page.png")
        rows(page).nth(3).click()
        page.get_by_role("dialog").screenshot(path=ROOT / "docs/pictures/details.png")
        page.keyboard.press("Escape")
        run.equipment.stop()
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size(PHONE)
        expect(part(page, "Equipment").first).to_contain_text("offline")
        page.screenshot(path=ROOT / "docs/pictures/page-narrow.png")
        run.equipment.start()
        page.set_viewport_size(SWAGGER)
        page.emulate_media(color_scheme="light")
        page.goto(f"{run.service.url}/swagger/")
        operation = page.locator("#operations-transactions-create_transaction")
        operation.locator(".opblock-summary-control").click()
        operation.get_by_role("button", name="Execute").click()
        answer = operation.locator(".live-responses-table .response").first
        expect(answer).to_contain_text(VERDICT, timeout=30_000)
        page.locator("textarea").evaluate("(body) => { body.style.minHeight = body.style.height = '5em' }")
        page.locator(".opblock-section-request-body").evaluate("(section) => section.scrollIntoView()")
        page.screenshot(path=ROOT / "docs/pictures/swagger.png")


if __name__ == "__main__":
    main()
