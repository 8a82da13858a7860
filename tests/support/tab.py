"""A browser tab with the page, and its parts."""

import re
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

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


def button(page, station: int):
    """The button that starts a transaction for this station."""
    return page.get_by_role("button", name=re.compile(f"^Start a transaction for station {station}, "))


def outcome(page, station: int):
    """What is said of the transaction that was started last for this station."""
    return page.get_by_role("listitem").filter(has=button(page, station)).locator(".outcome")


def part(page, name: str):
    """How this part of the service is."""
    return (
        page.get_by_role("list", name="State of the service").get_by_role("listitem").filter(has_text=name)
    )


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
