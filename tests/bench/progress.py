"""A progress bar on standard error, or a line for each step if standard error is not a terminal."""

import sys
import time

WIDTH = 30


class Progress:
    """`total` is the expected time of all steps, in seconds."""

    def __init__(self, total: float):
        self.total, self.done, self.began = total, 0.0, time.monotonic()

    def step(self, name: str, seconds: float) -> None:
        """Show that the last step has ended and that this one begins."""
        share = min(1, self.done / self.total)
        self.done += seconds
        line = f"{share:4.0%} {name}"
        if sys.stderr.isatty():
            bar = "#" * round(share * WIDTH)
            line = f"\r\x1b[K[{bar:.<{WIDTH}}] {line}"
        print(line, end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        took = f"{time.monotonic() - self.began:.0f} s"
        print(f"\r\x1b[K{took}" if sys.stderr.isatty() else took, file=sys.stderr)
