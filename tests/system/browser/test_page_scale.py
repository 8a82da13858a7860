"""The live page with 10,000 stations and 100,000 transactions, and under load."""

import re
import sqlite3
import time
from contextlib import closing

import pytest
from playwright.sync_api import expect

from kit.clock import uuid7
from load import Load
from programs import wait_until
from tab import button, chart, live, rows

STATIONS, TRANSACTIONS = 10_000, 100_000
STATUSES = ("COMPLETED", "COMPLETED", "ERROR", "EXPIRED")


@pytest.fixture
def large(service, equipment, tmp_path):
    """A service with that many stations and transactions, one every 10 s; the last one is a minute old."""
    service().stop()
    newest = int((time.time() - 60) * 1e6)
    times = [newest - number * 10_000_000 for number in range(TRANSACTIONS)]
    stations = [(number, f"Station {number}") for number in range(1, STATIONS + 1)]
    transactions = [
        (uuid7(created, 0).hex, 1 + n % STATIONS, STATUSES[n % 4], created, created + 5000, 1)
        for n, created in enumerate(times)
    ]
    with closing(sqlite3.connect(tmp_path / "energy2go.db")) as database, database:
        database.executemany("INSERT INTO station (id, description) VALUES (?, ?)", stations)
        columns = "(id, station_id, status, created, updated, attempts)"
        statement = f'INSERT INTO "transaction" {columns} VALUES (?, ?, ?, ?, ?, ?)'
        database.executemany(statement, transactions)
    equipment()
    started = service()
    wait_until(lambda: started.get("/readyz").status == 200, "the equipment is online")
    return started


def test_all_of_10000_stations_and_100000_transactions_can_be_reached(large, tab):
    service, page = large, tab.page
    page.goto(service.url)
    expect(rows(page)).to_have_count(20)
    expect(button(page, 10)).to_be_visible()
    search = page.get_by_label("Find a station")
    search.fill("station 9999")
    expect(button(page, 9999)).to_be_visible()
    search.fill("#9996")
    expect(page.locator("#stations .number").first).to_have_text("9996")
    expect(page.locator("#stations > li")).to_have_count(5)
    page.get_by_text("Filter", exact=True).click()
    page.get_by_role("spinbutton", name="Station").fill("777")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(10)
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("checkbox", name="EXPIRED").check()
    expect(rows(page)).to_have_count(20)
    expired = service.get("/transactions?status=EXPIRED&limit=80").json["items"]
    for number in (20, 40, 60):
        page.get_by_role("button", name="Older").click()
        expect(rows(page).first).to_have_attribute("data-id", expired[number]["id"])
    live(page)
    button(page, 9999).click()
    expect(chart(page)).to_have_accessible_name(re.compile("^Last 10 minutes: [1-9]"))


def test_under_load_the_page_keeps_up(large, tab):
    service, page = large, tab.page
    page.goto(service.url)
    live(page)
    before = len(tab.requests)
    load = Load(service, clients=8, total=1000).start()
    load.join()
    wait_until(lambda: not service.get("/transactions?status=PENDING").json["items"], "all are settled")
    newest = service.get("/transactions?limit=20").json["items"]
    expect(rows(page).first).to_have_attribute("data-id", newest[0]["id"])
    expect(rows(page)).to_have_count(20)
    found = rows(page).evaluate_all("(rows) => rows.map((row) => row.dataset.id)")
    assert found == [item["id"] for item in newest]
    assert len([one for one in tab.requests[before:] if "/counts" not in one.url]) < 10
