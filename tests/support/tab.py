"""A browser tab, and the parts of the live page in it."""

import re
import signal
from contextlib import contextmanager

from playwright.sync_api import expect

VERDICT = re.compile("COMPLETED|ERROR")
NOTICES = "#notices"
TOKEN = {"Authorization": "Bearer open-sesame"}  # a service without API_TOKEN takes any
QUIET = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no other host is found
]


class Tab:
    """A page in its own profile, with the complaints and the requests it made."""

    def __init__(self, chromium):
        self.context = chromium.new_context()
        self.context.set_default_timeout(60_000)
        self.complaints, self.requests, self.ended, self._trouble = [], [], set(), False
        self.context.on("console", self._on_console)
        self.context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.context.on("request", lambda request: self.requests.append(request))
        self.context.on("requestfinished", lambda request: self.ended.add(request))
        self.context.on("requestfailed", lambda request: self.ended.add(request))
        self.page = self.context.new_page()

    def _on_console(self, message):
        # Chromium reports every failed request. Some tests make requests fail, and /readyz answers 503 until
        # equipment is online.
        unready = message.location.get("url", "").endswith("/readyz")
        expected = (self._trouble or unready) and message.text.startswith("Failed to load resource")
        expected |= "ERR_NETWORK_CHANGED" in message.text  # Docker has added a network to this machine
        if message.type in ("error", "warning") and not expected:
            self.complaints.append(f"{message.text} ({message.location})")

    @contextmanager
    def trouble(self):
        """Inside this block requests may fail, and nothing else."""
        self._trouble = True
        yield
        self.at_rest()  # Chromium reports a failure after the page has noticed it
        self._trouble = False

    def wait_until(self, condition, what: str) -> None:
        """Wait for a condition while events of the browser arrive."""
        for _ in range(600):
            if condition():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(what)

    def at_rest(self) -> int:
        """Wait until the page waits for nothing but events, and return how many requests it made."""

        def rests() -> bool:
            waiting, before = self.waiting(), len(self.requests)
            # The page draws, and then asks for more, 30 ms after an answer.
            self.page.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")
            return not waiting and not self.waiting() and len(self.requests) == before

        self.wait_until(rests, "all requests are answered")
        return len(self.requests)

    def waiting(self) -> list[str]:
        """The requests without an answer, without the stream of events."""
        urls = [request.url for request in self.requests if request not in self.ended]
        return [url for url in urls if not url.endswith("/events")]

    def hold(self, pattern: str):
        """Hold the next request to this URL; returns a function that waits for it and lets it go on."""
        held = []
        self.page.route(pattern, lambda route: held.append(route), times=1)

        def go() -> None:
            self.wait_until(lambda: held, f"{pattern} is asked for")
            held.pop().continue_()

        return go

    def asked(self, method: str, path: str = "") -> list:
        """The requests so far with this method and this text in the URL."""
        return [request for request in self.requests if request.method == method and path in request.url]


@contextmanager
def frozen(program):
    """Inside this block the program does nothing."""
    program.send(signal.SIGSTOP)
    try:
        yield
    finally:
        program.send(signal.SIGCONT)


def live(page) -> None:
    """Wait until the page follows the events."""
    expect(part(page, "Updates")).to_contain_text("live")


def button(page, station: int):
    """The button that starts a transaction for this station."""
    return page.get_by_role("button", name=re.compile(f"^Start a transaction for station {station}, "))


def row(page, station: int):
    """What the page shows of this station."""
    return page.locator("#stations > li").filter(has=button(page, station))


def outcome(page, station: int):
    """The text about this station's newest transaction."""
    return row(page, station).locator(".outcome")


def change(page, station: int):
    """Open the form that changes this station, and return the station's row."""
    found = row(page, station)
    found.get_by_role("button", name="Change station").click()
    expect(found.get_by_label("Description")).to_be_focused()
    return found


def part(page, name: str):
    """The state of this part of the service."""
    parts = page.get_by_role("list", name="State of the service").get_by_role("listitem")
    return parts.filter(has_text=name)


def rows(page):
    """The transactions that are listed."""
    return page.locator("#transactions tr")


def field(page, name: str):
    """What the details say of this field."""
    return page.locator(f"dt:text-is('{name}') + dd")


def chart(page):
    """The chart, by what a screen reader says of it."""
    return page.get_by_role("img", name=re.compile("COMPLETED"))


def hide(page, hidden: bool) -> None:
    """Make the tab say that it is hidden, or that it is not."""
    page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )
