"""Another release, checked out and set up beside this one, to run in turns with it."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from programs import ROOT

OTHERS = r"/(\.venv|var|tests)/"  # folders that need not be compiled


def run(*command: str | Path) -> str | None:
    """The output of a command; None if it fails."""
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None
    return None


@contextlib.contextmanager
def checkout(commit: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """The short name of a commit, and its release in `folder`, ready to run. Without it the program ends."""
    git = ("git", "-C", ROOT)
    try:
        if run(*git, "worktree", "add", "--detach", folder, commit) is None:
            sys.exit(f"AGAINST={commit}: the history here has no such commit, or there is no history.")
        install(commit, folder)
        yield run("git", "-C", folder, "rev-parse", "--short=7", "HEAD") or commit, folder
    finally:
        run(*git, "worktree", "remove", "--force", folder)


def install(commit: str, root: Path) -> None:
    """Install the packages that this release names, and build its equipment.

    Ours would change its speed: gunicorn's threads use gunicorn-h1c as soon as it is installed.
    """
    python = root / ".venv/bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-r", root / "requirements.txt")
    if run(sys.executable, "-m", "venv", "--without-pip", root / ".venv") is None or run(*pip) is None:
        sys.exit(f"AGAINST={commit}: its packages cannot be installed.")
    if run("make", "-C", root / "validator", "validator") is None:
        print(f"The equipment of {commit} cannot be built here, so ours answers for it.", file=sys.stderr)
        shutil.copy(ROOT / "validator/validator", root / "validator/validator")
    compile_all(root)


def compile_all(root: Path) -> None:
    """Compile a release, so that its first start is as fast as the others."""
    run(sys.executable, "-m", "compileall", "-q", "-x", OTHERS, root)
