"""Stations on the live page: find, create, rename and delete them."""

from playwright.sync_api import expect

from tab import VERDICT, button, change, live, outcome, row, rows

MARKUP = (
    """<img src=x onerror="document.title='run'"></option></select>"""
    """<script>document.title='run'</script>&lt;b&gt;"""
)


def numbers(page):
    """The numbers of the stations that are shown."""
    return page.locator("#stations .number")


def test_a_station_is_found_by_its_text_and_by_its_number(opened):
    shared, page = opened(*(f"Depot {number}" for number in range(1, 31)), "Übersee")
    expect(numbers(page)).to_have_count(10)
    search = page.get_by_label("Find a station")
    search.fill("übersee")
    expect(numbers(page)).to_have_text(["31"])
    expect(page).to_have_url(f"{shared.service.url}/?q=%C3%BCbersee")
    page.reload()
    expect(numbers(page)).to_have_text(["31"])
    expect(search).to_have_value("übersee")
    search.fill("#25")
    expect(numbers(page)).to_have_text([str(number) for number in range(25, 32)])
    search.fill("100%")
    expect(page.locator("#no-stations")).to_have_text("No station matches.")
    search.fill("")
    expect(numbers(page)).to_have_count(10)
    expect(page).to_have_url(f"{shared.service.url}/")
    page.goto(f"{shared.service.url}/?stations_after=31")
    expect(page.locator("#no-stations")).to_have_text("No more stations.")
    page.get_by_role("button", name="Previous").click()
    page.get_by_role("button", name="Next").click()
    expect(numbers(page)).to_have_text([str(number) for number in range(11, 21)])
    for station in (11, 12, 12):
        shared.transact(station)
    change(page, 12).get_by_role("link", name="Transactions").click()
    expect(rows(page)).to_have_count(2)
    live(page)
    shared.transact(11)
    shared.transact(12)
    expect(rows(page)).to_have_count(3)


def test_a_new_station_is_shown_on_whichever_page_it_is(opened, tab):
    page = opened(*(f"Station {number}" for number in range(1, 11)))[1]
    new, create = page.get_by_label("New station"), page.get_by_role("button", name="Create")
    for number in (11, 12):
        expect(new).to_have_value("")
        new.fill(f"Number {number}")
        create.click()
        expect(button(page, number)).to_be_visible()
    page.get_by_role("button", name="Previous").click()
    expect(button(page, 1)).to_be_visible()
    with tab.trouble():  # 422
        new.fill("x" * 256)
        create.click()
        expect(page.locator("#new-station .wrong")).to_contain_text("The text must have 1 to 255 characters")
    expect(new).to_have_value("x" * 256)
    new.fill("x")
    expect(page.locator("#new-station .wrong")).to_be_hidden()  # with its cause
    go = tab.hold("**/stations")
    create.click()
    new.fill("the next one")
    go()
    expect(button(page, 13)).to_be_visible()
    expect(new).to_have_value("the next one")


def test_a_station_is_renamed_and_nothing_of_others_is_overwritten_unseen(opened, tab):
    shared, page = opened("Teste", "Hauptbahnhof")
    shared.transact(2)
    changed = change(page, 2)
    changed.get_by_label("Description").fill("Hauptbahnhof Nord")
    changed.get_by_role("button", name="Rename").click()
    expect(changed.locator(".name")).to_have_text("Hauptbahnhof Nord")
    expect(changed.get_by_role("button", name="Change station")).to_be_focused()
    expect(rows(page).first).to_contain_text("Hauptbahnhof Nord")

    change(page, 2)
    shared.service.request("PATCH", "/stations/2", {"description": "Theirs"})
    changed.get_by_label("Description").fill("Mine")
    with tab.trouble():  # 412
        changed.get_by_role("button", name="Rename").click()
        expect(changed.locator(".wrong")).to_contain_text("Someone else renamed it to “Theirs”.")
    expect(changed.locator(".name")).to_have_text("Theirs")
    expect(changed.get_by_label("Description")).to_have_value("Mine")
    assert shared.service.get("/stations/2").json["description"] == "Theirs"
    changed.get_by_role("button", name="Rename").click()  # now it was seen
    expect(changed.locator(".name")).to_have_text("Mine")
    expect(changed.locator(".wrong")).to_be_hidden()

    search = page.get_by_label("Find a station")
    change(page, 1).get_by_label("Description").fill("Half a wo")
    search.fill("Mine")
    expect(row(page, 1)).to_have_count(0)
    search.fill("")
    expect(row(page, 1).get_by_label("Description")).to_have_value("Half a wo")


def test_a_station_is_deleted_if_it_can_be(opened, tab):
    shared, page = opened("Teste", "Hauptbahnhof")
    shared.transact(1)
    page.on("dialog", lambda dialog: dialog.accept())
    first = change(page, 1)
    expect(first).to_contain_text("It has transactions, so you can't delete it.")
    expect(first.get_by_role("button", name="Delete")).to_have_count(0)
    second = change(page, 2)
    page.get_by_role("button", name="Pause").click()  # it will not hear of the next transaction
    shared.transact(2)
    with tab.trouble():  # 409
        second.get_by_role("button", name="Delete").click()
        expect(second.locator(".wrong")).to_contain_text("has transactions")
    shared.service.post("/stations", {"description": "Depot"})
    page.get_by_role("button", name="Pause").click()
    change(page, 3).get_by_role("button", name="Delete").click()
    expect(row(page, 3)).to_have_count(0)
    expect(page.get_by_label("Find a station")).to_be_focused()
    assert shared.service.get("/stations/3").status == 404
    shared.service.post("/stations", {"description": "Messe"})
    page.reload()
    fourth = change(page, 4)
    shared.service.request("DELETE", "/stations/4")
    fourth.get_by_label("Description").fill("Messe Nord")
    with tab.trouble():  # 404
        fourth.get_by_role("button", name="Rename").click()
        expect(fourth.locator(".wrong")).to_have_text("There is no station 4.")
    expect(fourth.get_by_role("button", name="Rename")).to_be_focused()


def test_what_looks_like_html_stays_text(opened):
    page = opened()[1]
    expect(page.locator("#no-stations")).to_have_text("There is no station yet. Create the first one here.")
    title = page.title()
    page.get_by_label("New station").fill(MARKUP)
    page.get_by_role("button", name="Create").click()
    expect(page.locator("#stations .name")).to_have_text(MARKUP)
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(rows(page).locator("bdi")).to_have_text(MARKUP)
    rows(page).first.click()
    expect(page.get_by_role("dialog").locator("bdi").first).to_have_text(f"1 · {MARKUP}")
    expect(page.get_by_role("log")).to_contain_text(MARKUP)
    expect(page.locator("main img, main script, #live img, dialog img")).to_have_count(0)
    assert page.title() == title
