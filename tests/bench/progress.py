"""The steps of a run on standard error."""

import sys
import time

BEGAN = time.monotonic()


def step(name: str) -> None:
    """Show that this step begins."""
    print(f"{time.monotonic() - BEGAN:4.0f} s: {name}", file=sys.stderr, flush=True)
