"""Stations on the live page: find, create, rename and delete them."""

from playwright.sync_api import expect

from tab import button, change, live, row, rows


def numbers(page) -> list[str]:
    """The numbers of the stations that are shown."""
    return page.locator("#stations .number").all_inner_texts()


def test_a_station_is_found_by_its_text_and_by_its_number(running, tab):
    service, page = running(*(f"Depot {number}" for number in range(1, 31)), "Übersee"), tab.page
    page.goto(service.url)
    expect(button(page, 10)).to_be_visible()
    search = page.get_by_label("Find a station")
    search.fill("übersee")
    expect(button(page, 31)).to_be_visible()
    assert numbers(page) == ["31"]
    assert page.url == f"{service.url}/?q=%C3%BCbersee"
    page.reload()
    expect(button(page, 31)).to_be_visible()
    expect(search).to_have_value("übersee")
    search.fill("#25")
    expect(button(page, 25)).to_be_visible()
    assert numbers(page) == [str(number) for number in range(25, 32)]
    search.fill("100%")
    expect(page.locator("#no-stations")).to_have_text("No station matches.")
    page.go_back()
    expect(button(page, 10)).to_be_visible()
    expect(search).to_have_value("")


def test_all_of_300_stations_can_be_reached_by_turning_pages(running, tab):
    service, page = running(), tab.page
    for number in range(300):
        service.post("/stations", {"description": f"Station {number}"})
    page.goto(service.url)
    after, found = page.get_by_role("group", name="Pages of stations"), []
    while True:
        expect(page.locator("#stations > li")).to_have_count(10)
        expect(button(page, len(found) + 1)).to_be_visible()
        found += numbers(page)
        if after.get_by_role("button", name="Next").get_attribute("aria-disabled") == "true":
            break
        after.get_by_role("button", name="Next").click()
    assert found == [str(number) for number in range(1, 301)]
    after.get_by_role("button", name="Previous").click()
    expect(button(page, 281)).to_be_visible()
    page.reload()
    expect(button(page, 281)).to_be_visible()


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
    said = page.locator("#new-station-said")
    with tab.trouble():  # 422
        page.get_by_label("New station").fill("x" * 256)
        page.get_by_role("button", name="Create").click()
        expect(said).to_contain_text("body.description")
    expect(page.get_by_label("New station")).to_have_value("x" * 256)
    page.get_by_label("New station").fill("x")
    expect(said).to_be_hidden()  # with its cause


def test_a_station_is_renamed_and_nothing_of_others_is_overwritten_unseen(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    service.post("/transactions", {"station_id": 2}, Prefer="wait=5")
    page.goto(service.url)
    changed = change(page, 2)
    changed.get_by_label("Description").fill("Hauptbahnhof Nord")
    changed.get_by_role("button", name="Rename").click()
    expect(changed.locator(".name")).to_have_text("Hauptbahnhof Nord")
    expect(changed.get_by_role("button", name="Change station")).to_be_focused()
    expect(rows(page).first).to_contain_text("Hauptbahnhof Nord")

    change(page, 2)
    service.request("PATCH", "/stations/2", {"description": "Theirs"})
    changed.get_by_label("Description").fill("Mine")
    with tab.trouble():  # 412
        changed.get_by_role("button", name="Rename").click()
        expect(changed.locator(".wrong")).to_be_visible()
    expect(changed.locator(".name")).to_have_text("Theirs")
    expect(changed.get_by_label("Description")).to_have_value("Mine")
    assert service.get("/stations/2").json["description"] == "Theirs"
    changed.get_by_role("button", name="Rename").click()  # now it was seen
    expect(changed.locator(".name")).to_have_text("Mine")
    expect(changed.locator(".wrong")).to_be_hidden()


def test_a_station_is_deleted_or_the_reason_is_said_why_not(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    page.goto(service.url)
    page.on("dialog", lambda dialog: dialog.accept())
    first = change(page, 1)
    with tab.trouble():  # 409
        first.get_by_role("button", name="Delete").click()
        expect(first.locator(".wrong")).to_contain_text("has transactions")
    first.get_by_role("button", name="Change station").click()
    expect(first.locator(".wrong")).to_be_hidden()
    change(page, 2).get_by_role("button", name="Delete").click()
    expect(row(page, 2)).to_have_count(0)
    expect(first.get_by_role("button", name="Change station")).to_be_focused()
    assert service.get("/stations/2").status == 404


def test_the_transactions_of_a_station_are_one_click_away(running, tab):
    service, page = running("Teste", "Hauptbahnhof"), tab.page
    for station in (1, 2, 2):
        service.post("/transactions", {"station_id": station}, Prefer="wait=5")
    page.goto(service.url)
    change(page, 2).get_by_role("link", name="Transactions").click()
    expect(rows(page)).to_have_count(2)
    expect(page.get_by_role("combobox", name="Station")).to_have_value("2 · Hauptbahnhof")
    live(page)
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    service.post("/transactions", {"station_id": 2}, Prefer="wait=5")
    expect(rows(page)).to_have_count(3)
