"""A progress bar on standard error; where that is no terminal, a line for each step."""

import sys
import time

WIDTH = 30


class Progress:
    """`total` is the seconds that all steps are expected to take."""

    def __init__(self, total: float):
        self.total, self.done, self.began = total, 0.0, time.monotonic()

    def step(self, name: str, seconds: float) -> None:
        """Say what begins now; the step before has ended."""
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
