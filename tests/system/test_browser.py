"""The pages in a real browser, Debian's Chromium, with the real programs behind them.

The pictures in docs/ are made by `PICTURES=docs .venv/bin/pytest tests/test_tab.py -k pictures`.
"""

import os
import re
import shutil
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from statistics import median

import pytest
from playwright.sync_api import expect, sync_playwright

from programs import wait_until

VERDICT = re.compile("COMPLETED|ERROR")
NOTICE = "#notice"
QUIET = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # whatever it asks for, it finds this machine only
]
LONG_WORD = "Elektrofahrzeugbatteriewechselstation" * 6


class Tab:
    """A page in a profile of its own, with what was complained about and asked for."""

    def __init__(self, chromium):
        self.context = chromium.new_context()
        self.context.set_default_timeout(30_000)
        self.complaints, self.requests, self._trouble = [], [], False
        self.context.on("console", self._on_console)
        self.context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.context.on("request", lambda request: self.requests.append(request))
        self.page = self.context.new_page()

    def _on_console(self, message):
        # Chromium itself reports every request that fails or is refused: right, where a test makes it so.
        expected = self._trouble and message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not expected:
            self.complaints.append(f"{message.text} ({message.location})")

    @contextmanager
    def trouble(self):
        """Within this, requests may fail; nothing else may."""
        self._trouble = True
        yield
        self._trouble = False

    def asked(self, method: str, path: str = "") -> list:
        """The requests until now with this method and this in their URL."""
        return [request for request in self.requests if request.method == method and path in request.url]


def processes_at(home: Path) -> list[Path]:
    """The processes that run with this home directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended just now
            if f"HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """The browser, which leaves no process behind."""
    home = tmp_path_factory.mktemp("chromium")
    expect.set_options(30_000)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            chromium_sandbox=False,  # which root could not have
            args=QUIET,
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
        )
        assert processes_at(home)
        yield started
        started.close()
    wait_until(lambda: not processes_at(home), "the browser has ended")


@pytest.fixture
def tab(chromium, programs):
    """A tab; afterwards it must have had nothing to complain about and have asked one service only."""
    opened = Tab(chromium)
    yield opened
    opened.context.close()
    hosts = {re.match(r"\w+:(//[^/]*)?", request.url)[0] for request in opened.requests} - {"data:"}
    assert hosts <= {program.url for program in programs if program.name == "service"}
    assert opened.complaints == []


@pytest.fixture
def running(service, equipment):
    """A service with stations and equipment that is online: `running("Teste", VALIDATOR_DELAY_MS="500")`."""

    def start(*stations, **options):
        started = service(**{name: value for name, value in options.items() if "VALIDATOR" not in name})
        started.equipment = equipment(**{name: value for name, value in options.items() if "VALIDATOR" in name})
        wait_until(
            lambda: started.get("/readyz").json["equipment"] == {"validator": "online"}, "the equipment is online"
        )
        for description in stations:
            assert started.post("/stations", {"description": description}).status == 201
        return started

    return start


def button(page, station: int):
    """The button that starts a transaction for this station."""
    return page.get_by_role("button", name=re.compile(f"^Start a transaction for station {station}, "))


def outcome(page, station: int):
    """What is said of the transaction that was started last for this station."""
    return page.get_by_role("listitem").filter(has=button(page, station)).locator(".outcome")


def part(page, name: str):
    """How this part of the service is."""
    return page.get_by_role("list", name="State of the service").get_by_role("listitem").filter(has_text=name)


def rows(page):
    return page.locator("#transactions tr")


def took(transaction: dict) -> float:
    """Milliseconds from its creation to its verdict."""
    created, updated = (datetime.fromisoformat(transaction[name]) for name in ("created", "updated"))
    return (updated - created).total_seconds() * 1000


def shown(text: str) -> float:
    """The last number of milliseconds in a text."""
    return float(re.findall(r"([\d,.]+) ms", text)[-1].replace(",", ""))


def polls(page, times: int = 2) -> None:
    """Wait until the page has asked this often."""
    for _ in range(times):
        with page.expect_response("**/readyz"):
            pass


# The page


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
    # Who listens to the page hears both.
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
    """<img src=x onerror="document.title='run'"></option></select><script>document.title='run'</script>&lt;b&gt;"""
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


# What fails


def test_equipment_that_is_stopped_is_said_and_comes_back(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(part(page, "Equipment validator")).to_contain_text("online")
    expect(page.locator(NOTICE)).to_be_hidden()
    service.equipment.stop()
    expect(page.locator(NOTICE)).to_contain_text("No equipment is online.")
    expect(part(page, "Equipment validator")).to_contain_text("offline")
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text("PENDING")
    service.equipment.start()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(part(page, "Equipment validator")).to_contain_text("online")
    expect(page.locator(NOTICE)).to_be_hidden()
    expect(page.get_by_role("log")).to_contain_text("All is well again.")


def test_a_broker_that_is_killed_is_said_and_comes_back(running, tab, broker):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(part(page, "Broker")).to_contain_text("ok")
    with tab.trouble():  # /readyz says 503
        broker.kill()
        expect(page.locator(NOTICE)).to_contain_text("The broker cannot be used")
        expect(part(page, "Broker")).to_contain_text("unavailable")
        expect(part(page, "Equipment")).to_contain_text("unknown")
        expect(part(page, "Database")).to_contain_text("ok")
        button(page, 1).click()
        expect(outcome(page, 1)).to_contain_text("PENDING")
        broker.start()
        expect(outcome(page, 1)).to_contain_text(VERDICT)
        expect(part(page, "Broker")).to_contain_text("ok")
        expect(page.locator(NOTICE)).to_be_hidden()


def test_a_service_that_is_away_is_said_and_comes_back(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    page.get_by_label("New station").fill("Hauptbahnhof")
    with tab.trouble():
        service.stop()
        expect(page.locator(NOTICE)).to_contain_text("The service does not answer.")
        expect(part(page, "Service")).to_contain_text("away")
        expect(part(page, "Broker")).to_contain_text("unknown")
        expect(rows(page)).to_have_count(1)  # what was seen last stays
        page.get_by_role("button", name="Create").click()
        expect(page.locator("#new-station-said")).to_contain_text("No answer came. Look whether the station is there")
        service.start()
        expect(part(page, "Service")).to_contain_text("ok")
        expect(page.locator(NOTICE)).to_be_hidden()
    page.get_by_role("button", name="Create").click()
    expect(button(page, 2)).to_be_visible()
    button(page, 1).click()
    expect(rows(page)).to_have_count(2)


def test_an_answer_that_gets_lost_starts_nothing_twice(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)

    def lose(route):
        route.fetch()
        route.abort()

    page.route("**/transactions", lose, times=1)
    with tab.trouble():
        button(page, 1).click()
        expect(page.get_by_text("it will not be started twice.").first).to_be_visible()
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    assert len(service.get("/transactions").json["items"]) == 1


def test_a_database_that_cannot_be_read_is_said(running, tab, tmp_path):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(part(page, "Database")).to_contain_text("ok")
    with tab.trouble():
        service.stop()
        for file in tmp_path.glob("energy2go.db*"):
            file.unlink()
        (tmp_path / "energy2go.db").write_text("This is no database. " * 1000)
        service.start()
        expect(page.locator(NOTICE)).to_contain_text("The database cannot be used")
        expect(part(page, "Database")).to_contain_text("unavailable")
        expect(part(page, "Service")).to_contain_text("ok")


# The token


def test_the_token_is_asked_for_once_and_kept_for_the_tab(running, tab):
    service, page = running(API_TOKEN="Schlüssel"), tab.page
    token = page.get_by_label("API token")
    with tab.trouble():  # 401
        page.goto(service.url)
        expect(token).to_be_focused()
        expect(page.locator("#token-said")).to_contain_text("asks for its token")
        asked = len(tab.asked("GET", "/stations"))
        polls(page)
        assert len(tab.asked("GET", "/stations")) == asked == 1
        token.fill("wrong")
        token.press("Enter")
        expect(page.locator("#token-said")).to_contain_text("refuses this token")
    expect(token).to_be_focused()
    token.fill("Schlüssel")
    page.get_by_role("button", name="Use it").click()
    expect(token).to_be_hidden()
    page.get_by_label("New station").fill("Teste")
    page.get_by_role("button", name="Create").click()
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    page.reload()
    expect(rows(page).first).to_contain_text(VERDICT)
    expect(token).to_be_hidden()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    with tab.trouble():
        other = tab.context.new_page()
        other.goto(service.url)
        expect(other.get_by_label("API token")).to_be_visible()


# How it behaves

OBSERVE = """() => {
    const changed = ({ type, oldValue, target, attributeName }) =>
        type !== "attributes" || oldValue !== target.getAttribute(attributeName);
    window.old = document.querySelectorAll("#transactions tr, #stations li, #state li, option");
    window.changes = [];
    new MutationObserver((records) => changes.push(...records.filter(changed).map(({ target }) => target.outerHTML)))
        .observe(document.body, { subtree: true, childList: true, characterData: true, attributeOldValue: true });
}"""


def test_polling_moves_and_takes_nothing_from_the_user(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.goto(service.url)
    expect(rows(page)).to_have_count(1)
    page.get_by_label("New station").fill("Half a wo")
    page.evaluate(OBSERVE)
    polls(page, 3)
    assert page.evaluate("changes") == []
    service.post("/transactions", {"station_id": 2})
    expect(rows(page)).to_have_count(2)
    expect(rows(page).first).to_contain_text("Hauptbahnhof")
    assert page.evaluate("[...old].every((element) => element.isConnected)")
    expect(page.get_by_label("New station")).to_be_focused()
    page.keyboard.type("rd")
    expect(page.get_by_label("New station")).to_have_value("Half a word")


def test_nothing_is_asked_while_the_tab_is_hidden(running, tab):
    service, page = running("Teste"), tab.page
    page.clock.install()
    page.goto(service.url)
    expect(button(page, 1)).to_be_visible()
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => Boolean(window.hidden) })")
    show = "(hidden) => { window.hidden = hidden; document.dispatchEvent(new Event('visibilitychange')) }"
    polls(page, 1)
    page.evaluate(show, True)
    asked = len(tab.asked("GET", "/readyz"))
    for _ in range(20):
        page.clock.run_for(3000)
    assert len(tab.asked("GET", "/readyz")) == asked
    service.post("/transactions", {"station_id": 1})
    page.evaluate(show, False)
    expect(rows(page)).to_have_count(1)


def test_the_keyboard_is_enough(running, tab):
    service, page = running("Teste"), tab.page
    page.goto(service.url)
    expect(button(page, 1)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="API")).to_be_focused()
    page.keyboard.press("Tab")
    expect(button(page, 1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(button(page, 1)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("Hauptbahnhof")
    page.keyboard.press("Enter")
    expect(button(page, 2)).to_be_visible()
    expect(page.get_by_label("New station")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Station", exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("COMPL")
    expect(page.get_by_label("Status")).to_have_value("COMPLETED")


# The lowest contrast of a text with what is behind it (WCAG 2.2, 1.4.3 asks for 4.5).
CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgb = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        return canvas.getImageData(0, 0, 1, 1).data };
    const light = (color) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => { const c = rgb(color)[i] / 255;
        return sum + weight * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4) }, 0.05);
    const behind = (element) => { const color = getComputedStyle(element).backgroundColor;
        return rgb(color)[3] ? color : behind(element.parentElement) };
    const texts = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
        && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
    const found = texts.map((element) => {
        const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
        return [Math.max(a, b) / Math.min(a, b), element.outerHTML] });
    return found.sort(([a], [b]) => a - b)[0];
}"""


def test_it_can_be_read_and_used_in_a_narrow_window_in_light_and_dark(running, tab):
    service, page = running("Teste", LONG_WORD), tab.page
    for number in range(8):
        service.post("/transactions", {"station_id": 1 + number % 2}, Prefer="wait=5")
    page.set_viewport_size({"width": 320, "height": 700})
    page.goto(service.url)
    button(page, 2).click()
    expect(outcome(page, 2)).to_contain_text(VERDICT)
    service.equipment.stop()
    expect(page.locator(NOTICE)).to_be_visible()
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text("PENDING")
    expect(rows(page).first).to_contain_text("PENDING")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    name = page.locator("#stations .name").nth(1)
    assert name.bounding_box()["height"] < 90  # three lines of it, and all of it as its title
    assert name.get_attribute("title") == LONG_WORD
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        lowest, where = page.evaluate(CONTRAST)
        assert lowest >= 4.5, where
    for control in page.locator("button:visible, input:visible, select:visible").all():
        box = control.bounding_box()
        assert min(box["width"], box["height"]) >= 24  # WCAG 2.2, 2.5.8
    tree = tab.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = "button", "combobox", "link", "textbox"
    names = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") in roles]
    assert len(names) == 7
    assert all(names)


# Swagger UI


def try_out(page, operation: str, **headers):
    """Press Execute in an operation of Swagger UI, with headers that it knows; returns what it shows of the answer."""
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


# Pictures


def test_the_pictures_are_of_a_handy_size(running, tab, tmp_path):
    folder = Path(os.environ.get("PICTURES") or tmp_path)
    folder.mkdir(exist_ok=True)
    names = "Teste", "Hauptbahnhof Nord", "Praça da República", "Flughafen, Ebene 0", "Depot 3 <hall B>"
    service, page = running(*names), tab.page
    for number in range(8):
        service.post("/transactions", {"station_id": 1 + number * number % 5}, Prefer="wait=5")

    def picture(name: str, width: int, height: int, scheme: str) -> None:
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=folder / name, animations="disabled")
        assert (folder / name).stat().st_size < 150_000, name

    page.goto(service.url)
    for station in (2, 4):
        button(page, station).click()
        expect(outcome(page, station)).to_contain_text(VERDICT)
    picture("page.png", 1180, 620, "light")
    service.equipment.stop()
    expect(page.locator(NOTICE)).to_be_visible()
    button(page, 3).click()
    expect(outcome(page, 3)).to_contain_text("PENDING")
    expect(rows(page).first).to_contain_text("PENDING")
    picture("page-narrow.png", 390, 844, "dark")
    service.equipment.start()
    page.goto(f"{service.url}/swagger/")
    expect(try_out(page, "transactions-create_transaction", Prefer="wait=5")).to_contain_text(VERDICT)
    page.set_viewport_size({"width": 1000, "height": 800})
    page.locator("textarea").evaluate("(body) => { body.style.minHeight = body.style.height = '5em' }")
    page.locator(".opblock-section-request-body").evaluate("(section) => section.scrollIntoView()")
    picture("swagger.png", 1000, 800, "light")
