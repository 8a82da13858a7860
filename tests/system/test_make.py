"""The Makefile installs only what a target needs, and keeps a .venv that works."""

import os
import re
import shutil
import subprocess

import pytest

from programs import ROOT

PIP_FAILS = "#!/bin/sh\ncase $* in *pip*) echo 'no network' >&2; exit 1;; esac\n"
PIP_WORKS = '#!/bin/sh\necho "$@" >> .venv/calls\n'
TARGETS = "help setup run check fix test test-faults coverage docker-test bench simulate soak backup restore"


@pytest.fixture
def make(tmp_path):
    """A function that runs make in its own folder, with a script as .venv's Python."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)

    def make(target: str, python: str) -> subprocess.CompletedProcess:
        (tmp_path / ".venv/bin/python").write_text(python)
        (tmp_path / ".venv/bin/python").chmod(0o755)
        command = ["make", "-s", "-o", "packages", "PYTHON=false", *target.split()]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return make


def test_running_installs_what_running_needs_and_tests_install_the_rest(make, tmp_path):
    assert make(".venv/run", PIP_WORKS).returncode == 0
    assert "-r requirements.txt" in (tmp_path / ".venv/calls").read_text()
    assert "requirements-dev.txt" not in (tmp_path / ".venv/calls").read_text()
    assert make(".venv/dev", PIP_WORKS).returncode == 0
    assert (tmp_path / ".venv/calls").read_text().count("pip install") == 2
    assert make(".venv/dev", PIP_WORKS).stdout == ""


@pytest.mark.parametrize("target", [".venv/run", ".venv/dev"])
def test_without_a_network_a_venv_that_works_is_kept(make, tmp_path, target):
    assert make(target, PIP_FAILS).returncode != 0, "a new one fails"
    assert not (tmp_path / target).exists()
    make(target, PIP_WORKS)
    (tmp_path / ".venv/marker").touch()
    for name in ("requirements.txt", "requirements-dev.txt"):
        os.utime(tmp_path / name, (4_000_000_000, 4_000_000_000))  # newer than the last installation
    again = make(target, PIP_FAILS)
    assert again.returncode == 0
    assert "could not be installed; .venv stays as it was." in again.stderr
    assert (tmp_path / ".venv/marker").exists()
    assert "installing" in make(target, PIP_WORKS).stdout, "the next run tries again"


def test_make_alone_lists_every_target_with_what_it_does(make):
    listed = dict(line.split(maxsplit=1) for line in make("", PIP_WORKS).stdout.splitlines())
    assert set(TARGETS.split()) <= listed.keys()


MISSING = r"mosquitto mosquitto-clients gcc curl openssl .*python3-venv python3-dev"
INSTALL = r"apt-get install -y --no-install-recommends"


@pytest.mark.parametrize(
    ("user", "sudo", "works"),
    [(0, "exit 1", True), (1000, '"$@"', True), (1000, "exit 1", False), (1000, None, False)],
)
def test_missing_packages_are_installed_as_root_or_named(tmp_path, user, sudo, works):
    """With these commands and nothing else in PATH, so that every package is missing."""
    called = tmp_path / "called"
    called.touch()
    skip = 'while [ "${1#*=}" != "$1" ]; do shift; done; "$@"'
    scripts = {"id": f"echo {user}", "env": skip, "apt-get": "exit 0"} | ({"sudo": sudo} if sudo else {})
    for name, script in scripts.items():
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{called}"\n{script}\n')
        (tmp_path / name).chmod(0o755)
    ended = subprocess.run(
        [shutil.which("make"), "-s", "-f", ROOT / "Makefile", "PYTHON=false", "packages"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode == 0) is works
    assert ("sudo apt-get update" in called.read_text()) is bool(user and sudo)
    if works:
        assert ended.stderr == ""
        assert re.search(rf"^{INSTALL} -qq {MISSING}$", called.read_text(), re.MULTILINE)
    else:
        as_root = rf"These packages are missing. As root, run: {INSTALL} {MISSING}\n"
        assert re.match(as_root, ended.stderr)
