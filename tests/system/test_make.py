"""The Makefile installs only what a target needs, and keeps a .venv that works."""

import os
import re
import shutil
import subprocess

import pytest

from programs import ROOT

PIP_FAILS = "#!/bin/sh\ncase $* in *pip*) echo 'no network' >&2; exit 1;; esac\n"
PIP_WORKS = '#!/bin/sh\necho "$@" >> .venv/calls\n'


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
    make(target, PIP_WORKS)
    (tmp_path / ".venv/marker").touch()
    for name in ("requirements.txt", "requirements-dev.txt"):
        os.utime(tmp_path / name, (4_000_000_000, 4_000_000_000))  # newer than the last installation
    again = make(target, PIP_FAILS)
    assert again.returncode == 0
    assert "could not be installed; .venv stays as it was." in again.stderr
    assert (tmp_path / ".venv/marker").exists()
    assert "installing" in make(target, PIP_WORKS).stdout, "the next run tries again"


def test_without_a_network_a_new_venv_fails(make, tmp_path):
    assert make(".venv/run", PIP_FAILS).returncode != 0
    assert not (tmp_path / ".venv/run").exists()


def test_make_alone_lists_every_target_with_what_it_does(make):
    listed = dict(line.split(maxsplit=1) for line in make("", PIP_WORKS).stdout.splitlines())
    targets = (
        "help setup run check fix test test-faults coverage docker-test bench soak backup restore fuzz clean"
    )
    assert set(targets.split()) <= listed.keys()


# The apt packages, in an environment where everything is missing


@pytest.fixture
def packages(tmp_path):
    """A function that runs `make packages` as this user with these commands and nothing else in PATH."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    called = tmp_path / "called"
    called.touch()
    (tmp_path / "commands").mkdir()

    def packages(user: int, **commands: str) -> tuple[int, str, str]:
        commands |= {"id": f"echo {user}", "env": 'while [ "${1#*=}" != "$1" ]; do shift; done; "$@"'}
        for name, script in commands.items():
            (tmp_path / "commands" / name).write_text(
                f'#!/bin/sh\necho "{name} $*" >> "{called}"\n{script}\n'
            )
            (tmp_path / "commands" / name).chmod(0o755)
        ended = subprocess.run(
            [shutil.which("make"), "-s", "PYTHON=false", "packages"],
            cwd=tmp_path,
            env={"PATH": str(tmp_path / "commands")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return ended.returncode, ended.stderr, called.read_text()

    return packages


MISSING = r"mosquitto mosquitto-clients gcc curl openssl .*python3-venv python3-dev"
AS_ROOT = (
    rf"These packages are missing. As root, run: apt-get install -y --no-install-recommends {MISSING}\n"
)


def test_without_root_and_sudo_it_prints_what_to_run_as_root(packages):
    status, said, called = packages(1000, **{"apt-get": "exit 0"})
    assert status != 0
    assert re.match(AS_ROOT, said)
    assert "apt-get" not in called


def test_the_same_if_sudo_refuses(packages):
    status, said, called = packages(1000, sudo="exit 1", **{"apt-get": "exit 0"})
    assert status != 0
    assert re.match(AS_ROOT, said)
    assert "sudo apt-get update" in called


@pytest.mark.parametrize("user", [0, 1000])
def test_root_or_sudo_installs_what_is_missing(packages, user):
    status, said, called = packages(user, sudo='"$@"', **{"apt-get": "exit 0"})
    assert (status, said) == (0, "")
    assert re.search(rf"^apt-get install -y --no-install-recommends -qq {MISSING}$", called, re.MULTILINE)
    assert ("sudo apt-get update -qq" in called) is (user != 0)
