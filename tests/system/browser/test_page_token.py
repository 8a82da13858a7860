"""With a token: the live page, Swagger UI, the keyboard, and the clients in docs/http.md."""

import re
import sys

from playwright.sync_api import expect

from programs import ROOT, Program, wait_until
from tab import NOTICES, TOKEN, VERDICT, button, live, outcome, part, row, rows

OPTIONS = {"API_TOKEN": "Schlüssel", "API_TOKEN_OLD": "open-sesame"}
DOCUMENT = (ROOT / "docs/http.md").read_text()
LIBRARY = {file.stem: file for file in (ROOT / ".venv/fetch-event-source/lib/esm").glob("*.js")}
MODULES = '{"imports": {"@microsoft/fetch-event-source": "/library/index.js"}}'


def test_the_token_is_asked_for_once_and_kept_for_its_tab(running, tab):
    shared, page = running("Teste"), tab.page
    token, said = page.get_by_label("API token"), page.locator("#token-said")
    page.clock.install()
    with tab.trouble():  # 401
        page.goto(shared.service.url)
        expect(token).to_be_focused()
        expect(said).to_contain_text("asks for its token")
        asked = tab.at_rest()
        page.clock.run_for(10_000)
        assert tab.at_rest() == asked
        token.fill("wrong")
        token.press("Enter")
        expect(said).to_contain_text("refuses this token")
        expect(token).to_be_focused()
    expect(page).to_have_title("Token needed · energy2go")
    expect(part(page, "Service").locator("b")).to_have_text("ok")
    go = tab.hold("**/stations?*")
    token.fill("Schlüssel")
    page.get_by_role("button", name="Use it").click()
    expect(token).to_be_hidden()
    expect(page.get_by_role("button", name="Pause")).to_be_focused()
    live(page)  # the stream takes the token too
    go()
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    page.reload()
    expect(rows(page)).to_contain_text([VERDICT])
    expect(token).to_be_hidden()
    expect(page.locator(NOTICES)).to_be_empty()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    with tab.trouble():
        other = tab.context.new_page()
        other.goto(f"{shared.service.url}/?transaction={rows(page).get_attribute('data-id')}")
        use_token(other)  # no dialog is in the way
        expect(other.get_by_role("dialog").locator("dd").first).to_have_text("1 · Teste")
        page.get_by_role("button", name="Pause").click()
        shared.service.post("/transactions", {"station_id": 1}, **TOKEN)
        page.evaluate("sessionStorage.clear()")
        page.get_by_label("Find a station").fill("Teste")
        token.fill("Schlüssel")
        token.press("Enter")
        expect(rows(page)).to_have_count(2)  # although the page is paused
        page.get_by_role("button", name="Forget token").click()
        expect(token).to_be_visible()
        expect(rows(page)).to_have_count(0)
    expect(page.get_by_role("button", name="Forget token")).to_be_hidden()
    assert page.evaluate("sessionStorage.length") == 0


def use_token(page) -> None:
    """Enter the token."""
    page.get_by_label("API token").fill("Schlüssel")
    page.get_by_role("button", name="Use it").click()
    live(page)


def test_swagger_ui_uses_the_token_of_the_page(running, tab):
    shared, page = running(), tab.page

    def try_out(operation: str, **headers):
        """Execute an operation with these headers; returns the part that shows the answer."""
        block = page.locator(f"#operations-{operation}")
        block.locator(".opblock-summary-control").click()
        for name, value in headers.items():
            block.get_by_placeholder(name).fill(value)
        block.get_by_role("button", name="Execute").click()
        answer = block.locator(".live-responses-table .response").first
        expect(answer.locator(".response-col_status")).to_contain_text("201")
        return answer

    with tab.trouble():  # 401
        page.goto(shared.service.url)
        use_token(page)
    page.get_by_role("link", name="API").click()
    expect(try_out("stations-create_station")).to_contain_text('"description": "Teste"')
    answer = try_out("transactions-create_transaction", Prefer="wait=5")
    expect(answer).to_contain_text(re.compile('"status": "(COMPLETED|ERROR)"'))


def use(page, target, text: str = "", key: str = "Enter") -> None:
    """Press Tab until this has the focus, then type the text and press the key."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if target.evaluate("(element) => element === document.activeElement"):
            page.keyboard.type(text)
            return page.keyboard.press(key)
    raise AssertionError(f"not reached: {target}")


def test_the_keyboard_is_enough(running, tab):
    shared, page = running("Teste", "Hauptbahnhof"), tab.page
    with tab.trouble():  # 401
        page.goto(shared.service.url)
        expect(page.get_by_label("API token")).to_be_focused()
        page.keyboard.type("open-sesame")
        page.keyboard.press("Enter")
        live(page)
    expect(button(page, 1)).to_be_visible()
    use(page, button(page, 1))
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(button(page, 1)).to_be_focused()
    use(page, row(page, 2).get_by_role("button", name="Change station"))
    expect(row(page, 2).get_by_label("Description")).to_be_focused()
    page.keyboard.type("Flughafen ")
    page.keyboard.press("Enter")
    expect(page.locator("#stations")).to_contain_text("Flughafen")
    use(page, page.get_by_label("New station"), "Depot")
    expect(button(page, 3)).to_be_visible()
    expect(page.get_by_label("New station")).to_be_focused()
    use(page, page.locator("#filter summary"))
    use(page, page.get_by_role("spinbutton", name="Station"), "1")
    expect(page).to_have_url(re.compile("station_id=1"))
    use(page, page.get_by_role("checkbox", name="EXPIRED"), key="Space")
    expect(page.locator("#no-transactions")).to_be_visible()
    page.keyboard.press("Space")
    link = rows(page).first.get_by_role("link")
    expect(link).to_be_visible()
    use(page, link)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(link).to_be_focused()
    expect(page).not_to_have_url(re.compile("transaction="))
    page.reload()
    expect(link).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the transactions")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(link).to_be_focused()


def example(language: str, word: str) -> str:
    """The block in this language that has this word."""
    blocks = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    (found,) = [code for code in blocks if word in code]
    return found


def python(folder, programs, url: str):
    """Start the example in Python, and return what it prints."""
    code = example("python", "httpx_sse").replace("http://127.0.0.1:8000", url)
    command = [sys.executable, "-c", code]
    client = Program("client", command, folder, {"API_TOKEN": "open-sesame"}).start()
    programs.append(client)
    return lambda: client.output.read_text().splitlines()


def browser(tab, url: str, word: str):
    """Open a page of the service with an example, and return what it prints."""
    page, said = tab.context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    html = f'<script type="importmap">{MODULES}</script><script type="module">'
    html += f'const token = "open-sesame";\n{example("js", word)}</script>'
    page.route(f"{url}/example", lambda route: route.fulfill(body=html, content_type="text/html"))
    name = lambda route: re.search(r"(\w+)(\.js)?$", route.request.url)[1]  # noqa: E731
    files = lambda route: route.fulfill(path=LIBRARY[name(route)], content_type="text/javascript")  # noqa: E731
    page.route(re.compile("/library/"), files)
    if word == "new EventSource":  # it cannot send a token
        page.set_extra_http_headers(TOKEN)
    page.goto(f"{url}/example")
    return lambda: tab.page.evaluate("1") and said


def test_the_documented_clients_miss_nothing_over_a_restart(running, tab, tmp_path, programs):
    service = running("Teste").service
    words = "new EventSource", "fetchEventSource"
    clients = [python(tmp_path, programs, service.url), *(browser(tab, service.url, word) for word in words)]

    followed = b"energy2go_followers 3.0"
    tab.wait_until(lambda: followed in service.get("/metrics", **TOKEN).body, "they follow")

    def settled() -> str:
        """A line that each client prints for a new transaction."""
        new = service.post("/transactions", {"station_id": 1}, Prefer="wait=20", **TOKEN).json
        return f"{new['id']} {new['status']}"

    first = settled()
    tab.wait_until(lambda: all(first in said() for said in clients), "they print the verdict")
    with tab.trouble():
        service.stop()
        service.start()
        wait_until(service.ready, "it is ready again")
        second = settled()
        tab.wait_until(lambda: all(second in said() for said in clients), "they print the next one")
    assert all([line for line in said() if line in (first, second)] == [first, second] for said in clients)
