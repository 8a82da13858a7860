"""The live page says what is wrong, and stops saying it when it is mended."""

import re

from playwright.sync_api import expect

from load import Load
from programs import Nginx
from tab import NOTICES, VERDICT, button, chart, frozen, hide, live, outcome, part, row, rows


def ready(database: str = "ok", broker: str = "ok", **more) -> dict:
    """A body of /readyz."""
    return {"ready": {"database": database, "broker": broker, "equipment": {"a": "online"}} | more}


# What differs from a service that is well; how its parts are; and how the notices begin.
STATES = [
    ({}, "ok ok ok a·online live", []),
    ({"away": "Gone.", "broken": "x"}, "away! unknown unknown unknown live", ["Gone. Showing data from "]),
    ({"token": "Give it."}, "ok unknown unknown unknown live", []),
    ({"ready": None, "updates": "starting"}, "unknown unknown unknown unknown starting", []),
    (ready(database="bad"), "ok unavailable! ok a·online live", ["The database can't be used: bad."]),
    (ready(broker="gone"), "ok ok unavailable! unknown live", ["The broker can't be used: gone."]),
    (ready(equipment="unknown"), "ok ok ok unknown live", []),
    (ready(equipment={"c": "offline", "a": "online", "b": "online"}), "ok ok ok 2·of·3·online live", []),
    (ready(equipment={"a": "offline", "b": "offline"}), "ok ok ok none·of·2·online live", []),
    (ready(equipment={"a": "offline"}, status=503), "ok ok ok a·offline! live", ["No equipment is online."]),
    (
        {"refused": {"list": "Not now.", "counts": "Not now."}, "slow": True},
        "ok ok ok a·online live",
        ["Not now.", "The network"],
    ),
    ({"broken": "Many.", "paused": True}, "ok ok ok a·online live", ["Live updates are down", "Paused"]),
]
WORDS = """async (given) => {
    const { partsOf, noticesOf } = await import("/static/words.js");
    const state = { seen: new Date(), updates: "live", refused: {}, ...given };
    const word = ({ word, look }) => word.replaceAll(" ", "·") + (look === "bad" ? "!" : "");
    return [partsOf(state).map(word).join(" "), noticesOf(state).map(({ text }) => text)];
}"""


def test_each_state_of_the_service_has_its_words(running, tab):
    tab.page.goto(running().service.url)
    for state, parts, notices in STATES:
        words, said = tab.page.evaluate(WORDS, ready() | state)
        assert words == parts, state
        assert len(said) == len(notices), said
        assert all(map(str.startswith, said, notices)), said


def test_trouble_is_shown_on_top_in_the_title_and_in_the_icon(running, tab, programs):
    """Through nginx, in a window that is not looked at, while equipment and broker end and come back."""
    shared, page = running("Teste"), tab.page
    programs.append(Nginx([shared.service]))
    page.goto(programs[-1].start().url)
    expect(part(page, "Equipment").first).to_contain_text("Equipment validator online")
    expect(page).to_have_title("energy2go")
    live(page)
    top = page.locator("main").bounding_box()["y"]
    hide(page, True)
    asked = tab.at_rest()
    shared.equipment.stop()
    expect(page).to_have_title("▲ Equipment validator offline · energy2go")
    expect(page.locator("#icon")).to_have_attribute("href", re.compile("^data:image/svg"))
    expect(page.locator(NOTICES)).to_have_text(re.compile(r"^\d\d:\d\d:\d\d No equipment is online"))
    page.locator("#equipment summary").click()
    expect(page.locator("#equipment").get_by_role("listitem")).to_have_text(["validator offline"])
    shared.broker.kill()
    expect(page).to_have_title("▲ Broker unavailable · energy2go")
    expect(page.locator(NOTICES)).to_contain_text("The broker can't be used")
    assert page.locator("main").bounding_box()["y"] == top
    since = [request.url for request in tab.requests[asked:] if not request.url.startswith("data:")]
    assert since == []  # the events said all of that
    hide(page, False)
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text("PENDING")
    shared.broker.start()
    shared.equipment.start()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(page).to_have_title("energy2go")
    expect(page.locator("#icon")).to_have_attribute("href", "/static/icon.svg")
    expect(page.locator(NOTICES)).to_be_empty()
    expect(page.get_by_role("log")).to_contain_text("Everything works again.")


def test_a_service_that_is_away_is_said_and_nothing_that_happened_in_between_is_missed(opened, tab):
    shared, page = opened("Teste")
    service = shared.service
    button(page, 1).click()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    page.get_by_label("New station").fill("Hauptbahnhof")
    live(page)
    with tab.trouble():
        service.stop()
        expect(page.locator(NOTICES)).to_contain_text("The service does not answer.")
        expect(rows(page)).to_have_count(1)  # the last known rows stay
        expect(page).to_have_title("▲ Service away · energy2go")
        page.get_by_role("button", name="Create").click()
        expect(page.locator("#new-station .wrong")).to_contain_text(
            "No answer came. Check whether the station exists"
        )
        button(page, 1).click()
        expect(row(page, 1).locator(".wrong")).to_contain_text("No answer came. Start it again")
        page.route("**/*", lambda route: route.abort())
        service.start()
        Load(service, total=250).start().join()  # more than one list holds
        tab.wait_until(lambda: not shared.status("PENDING"), "all are settled")
        page.unroute_all(behavior="wait")
        expect(part(page, "Service")).to_contain_text("ok")
        expect(page.locator("#new-station .wrong")).to_contain_text("Check whether the station exists")
        expect(row(page, 1).locator(".wrong")).to_have_text("It wasn't started.")
        expect(page.locator(NOTICES)).to_be_empty()
        live(page)
    expect(rows(page)).to_have_count(20)
    completed, refused = shared.status("COMPLETED"), shared.status("ERROR")
    assert completed + refused == 251
    sums = re.compile(f" {completed} COMPLETED {refused} ERROR 0 EXPIRED")
    expect(chart(page)).to_have_accessible_name(sums)
    page.get_by_role("button", name="Create").click()
    expect(button(page, 2)).to_be_visible()


def test_without_events_the_page_asks_and_says_so(running, tab):
    shared, page = running("Teste"), tab.page
    with tab.trouble():
        problem = {"title": "x", "status": 503, "detail": "Too many follow."}
        page.route("**/events", lambda route: route.fulfill(status=503, json=problem))
        page.goto(f"{shared.service.url}/?status=EXPIRED")
        expect(page.locator(NOTICES)).to_contain_text("Live updates are down (Too many follow.)")
        expect(part(page, "Updates")).to_contain_text("every 2 s")
        with frozen(shared.equipment):
            button(page, 1).click()
            expect(outcome(page, 1)).to_contain_text("PENDING")
        expect(outcome(page, 1)).to_contain_text(VERDICT)  # followed although it is not listed
        shared.station()
        expect(button(page, 2)).to_be_visible()
        page.unroute("**/events")
        live(page)
        expect(page.locator(NOTICES)).to_be_empty()


def test_a_slow_network_is_not_taken_for_a_service_that_is_away(opened, tab):
    page = opened("Teste", clock=True)[1]
    go = tab.hold("**/transactions")
    with page.expect_request("**/transactions"):
        button(page, 1).click()
    page.clock.fast_forward(5000)
    slow = "The network or the service is slow. Still waiting for an answer."
    expect(page.locator(NOTICES)).to_contain_text(slow)
    expect(part(page, "Service")).to_contain_text("ok")
    go()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    expect(page.locator(NOTICES)).to_be_empty()
    assert "does not answer" not in page.get_by_role("log").inner_text()


def test_an_answer_that_is_lost_starts_nothing_twice(opened, tab):
    shared, page = opened("Teste")

    def lose(route):
        route.fetch()
        route.abort()

    page.route("**/transactions", lose, times=1)
    with tab.trouble():
        button(page, 1).click()
        # The page looks for it by its key, and finds that it was started.
        expect(page.get_by_role("log")).to_contain_text("it won't start twice.")
        expect(row(page, 1).locator(".wrong")).to_be_hidden()
    expect(outcome(page, 1)).to_contain_text(VERDICT)
    page.get_by_role("button", name="Pause").click()
    page.route("**/transactions", lose, times=1)
    with tab.trouble():
        button(page, 1).click()
        expect(rows(page)).to_have_count(2)  # it is looked for although the page is paused
    expect(page.locator(NOTICES)).to_have_text(re.compile(r"^\d\d:\d\d:\d\d Paused"))
    assert len(shared.service.get("/transactions").json["items"]) == 2


def test_a_list_that_was_refused_is_asked_for_again_unless_that_cannot_help(opened, tab):
    shared, page = opened("Teste")
    shared.transact(1)
    expect(rows(page)).to_have_count(1)
    problem = {"title": "x", "status": 503, "detail": "The database cannot be read now."}
    page.route("**/transactions?status=*", lambda route: route.fulfill(status=503, json=problem), times=1)
    with tab.trouble():
        page.get_by_text("Filter", exact=True).click()
        page.get_by_role("checkbox", name="EXPIRED").check()
        expect(page.locator(NOTICES)).to_contain_text("The database cannot be read now.")
        expect(page.locator(NOTICES)).to_be_empty()
        expect(page.locator("#no-transactions")).to_have_text("No transaction matches.")
        page.goto(f"{shared.service.url}/?status=DONE&created_from=yesterday")  # 422
        expect(page.locator(NOTICES)).to_contain_text("has a value that isn't valid. Clear the filter.")
        page.get_by_role("button", name="Clear").click()
        expect(page.locator(NOTICES)).to_be_empty()
        expect(rows(page)).to_have_count(1)
        go = tab.hold("**/transactions?station_id=*")
        page.goto(f"{shared.service.url}/?station_id=1e1")
        page.get_by_role("button", name="Clear").click()
        expect(rows(page)).to_have_count(1)
        with page.expect_response("**/transactions?station_id=*"):  # 422, after the user has moved on
            go()
        tab.at_rest()
        expect(page.locator(NOTICES)).to_be_empty()
