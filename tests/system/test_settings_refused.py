"""Programs that start with bad settings, or on ports that are taken."""

import json
import os
import socket
import subprocess
import sys

import pytest

from programs import COVERAGE, ROOT, free_port


def run(*command, folder=ROOT, **environment) -> subprocess.CompletedProcess:
    """Run a command in this folder with only this environment."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | COVERAGE | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def run_desk(folder, **environment) -> subprocess.CompletedProcess:
    """What `make run` does, in a folder without a Procfile, so that it starts nothing."""
    ports = {"BIND": f"127.0.0.1:{free_port()}", "MQTT_PORT": str(free_port())}
    environment = ports | environment | {"PYTHONPATH": str(ROOT)}
    return run(sys.executable, "-m", "kit.desk", folder=folder, **environment)


@pytest.mark.parametrize("command", [["-m", "kit.desk"], ["-m", "gunicorn", "app:app"]])
def test_a_program_with_a_bad_value_ends_with_one_sentence(command):
    ended = run(sys.executable, *command, THREADS="many")
    assert ended.returncode == 1
    sentence = "THREADS='many': must be a whole number from 2 to 256. See the line of THREADS in .env.\n"
    assert (ended.stderr, ended.stdout) == (sentence, "")


def test_gunicorn_refuses_what_it_cannot_do():
    command = sys.executable, "-m", "gunicorn", "app:app"
    assert "workers: must be at least 1.\n" in run(*command, "--workers", "0").stderr
    unknown = run(*command, BIND="no-such-host.invalid:8000").stderr
    assert "\nBIND: port 8000 on no-such-host.invalid cannot be used (" in f"\n{unknown}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        lines = run(*command, BIND=f"127.0.0.1:{port}", LOG_FORMAT="json").stderr.splitlines()
    (refused,) = (line for line in map(json.loads, lines) if line["event"] == "refused")
    assert refused["message"].startswith(
        f"BIND: port {port} on 127.0.0.1 cannot be used (Address already in"
    )


# Ports, before `make run` starts anything


def test_a_port_that_is_taken_is_named_with_a_way_out(tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        for name, value in (("MQTT_PORT", f"{port}"), ("BIND", f"127.0.0.1:{port}")):
            ended = run_desk(tmp_path, **{name: value})
            assert ended.returncode == 1
            problem = "cannot be used (Address already in use). "
            assert ended.stderr.startswith(f"{name}: port {port} on 127.0.0.1 {problem}")
            assert all(word in ended.stderr for word in (f"{name}=", "make run", ".env"))
            assert "Traceback" not in ended.stderr
