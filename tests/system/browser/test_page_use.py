"""The live page with a token, a keyboard, a narrow window, and in a hidden tab."""

from playwright.sync_api import expect

from tab import LONG_WORD, NOTICE, VERDICT, button, outcome, polls, rows


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
}"""  # noqa: E501


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


# The lowest contrast of a text with its background (WCAG 2.2, 1.4.3 requires 4.5).
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
}"""  # noqa: E501


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
    assert name.bounding_box()["height"] < 90  # three lines; the title has the whole name
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
