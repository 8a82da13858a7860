"""How the service starts: on one processor, and not with settings that cannot work."""

import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kit.settings import VERSION
from programs import ROOT, Equipment, Service, free_port, wait_until


def test_all_threads_that_take_the_interpreters_lock_stay_on_one_processor(running):
    service = running()
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    (worker,) = service.children
    threads = Path(f"/proc/{worker}/task").iterdir()
    allowed = [
        re.search(r"Cpus_allowed_list:\s*(\S+)", (thread / "status").read_text())[1] for thread in threads
    ]
    assert len(allowed) >= 4  # the loop, the readers, the ledger and paho
    assert len(set(allowed)) == 1
    assert int(allowed[0]) in os.sched_getaffinity(0)


def test_with_sqlite_no_process_loads_the_driver_of_postgresql(running):
    service = running()
    loaded = [Path(f"/proc/{pid}/maps").read_text() for pid in (service.pid, *service.children)]
    assert all("msgspec" in one and "psycopg" not in one for one in loaded)


def test_where_a_sandbox_forbids_that_the_service_starts_all_the_same(monkeypatch):
    def refuse(*arguments):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    runpy.run_path(str(ROOT / "gunicorn.conf.py"))["stay_on_one_processor"]()  # raises nothing


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--preload", "preload_app: must stay"),
        ("--workers=2", "workers: must be 1"),
        ("--keep-alive=0", "keepalive: must be at least 1"),
        ("--worker-connections=0", "worker_connections: must be at least 1"),
        ("--graceful-timeout=0", "graceful_timeout: must be at least 1"),
        ("--worker-class=sync", "worker_class: must stay"),
        ("--asgi-lifespan=on", "asgi_lifespan: must stay"),
    ],
)
def test_gunicorn_refuses_options_that_cannot_work(tmp_path, broker, option, sentence):
    log_format = "json" if "worker" in option else "text"
    refused = Service(tmp_path, broker, GUNICORN_CMD_ARGS=option, LOG_FORMAT=log_format)
    process = subprocess.run(
        refused.command, cwd=ROOT, env=refused.environment, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 1
    (line,) = (line for line in process.stderr.splitlines() if sentence in line)
    said = [json.loads(line) for line in process.stderr.splitlines()] if log_format == "json" else []
    assert line.startswith(sentence) or sentence in [line["message"][: len(sentence)] for line in said]


@pytest.mark.parametrize(
    ("bind", "open_at", "ready"),
    [
        ("--bind 0.0.0.0:{0}", ["0.0.0.0:{0}"], ["ready on port {0} of every address"]),
        (
            "--bind [::1]:{1} --bind localhost:{0} --bind unix:{2}",
            [],
            ["ready at http://[::1]:{1} (", "ready at http://127.0.0.1:{0} (", "ready at unix:{2}"],
        ),
    ],
)
def test_it_names_the_addresses_that_gunicorn_uses(tmp_path, run, broker, bind, open_at, ready):
    run(Equipment, broker)
    port, path = free_port(), tmp_path / "socket"
    names = port, free_port(), path
    options = {"BIND": "127.0.0.1:1", "GUNICORN_CMD_ARGS": bind.format(*names)}
    service = run(Service, broker, port=port, **options)
    for line in ready:
        wait_until(lambda: line.format(*names) in service.said(), "it says so")  # noqa: B023
    warned = re.findall("WARNING gunicorn: .*API_TOKEN.* reach BIND=(.*) can", service.said())
    assert warned == [name.format(*names) for name in open_at]
    if path.exists():
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_it_logs_its_settings_without_secrets(run, broker):
    service = run(Service, broker, API_TOKEN="sesame", **broker.environment_of_clients)
    wait_until(lambda: "INFO gunicorn: energy2go" in service.said(), "it says so")
    (line,) = re.findall("INFO gunicorn: energy2go .*", service.said())
    assert VERSION in line
    assert f"MQTT_PORT={broker.port}" in line
    assert "DATABASE_URL=sqlite:///" in line
    assert not any(secret in line for secret in ("sesame", broker.environment_of_clients["MQTT_PASSWORD"]))


def test_closed_standard_streams_cost_nothing_but_the_log(tmp_path, programs, broker):
    service = Service(tmp_path, broker)
    service.command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *service.command]
    programs.append(service.start())
    wait_until(service.ready, "it is ready")
    assert service.get("/nothing").status == 404
    assert os.readlink(f"/proc/{service.children[0]}/fd/2") == os.devnull


def test_nothing_is_opened_by_importing(tmp_path):
    code = "import os, threading, app; print(threading.active_count(), sorted(os.listdir('/proc/self/fd')))"
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert process.stdout.startswith("1 ")
    assert len(process.stdout.split(",")) <= 4  # the standard streams, and the listing
    assert list(Path(tmp_path).iterdir()) == []


@pytest.fixture
def copy(tmp_path):
    """A copy of the project's folder, because each reads its own .env."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, copy)
    for name in ("kit", "migrations", "static"):
        shutil.copytree(ROOT / name, copy / name)
    return copy


def test_a_reload_needs_no_settings(tmp_path, programs, broker, copy):
    service = Service(tmp_path, broker)
    service.command = ["env", f"--chdir={copy}", *service.command]
    programs.append(service.start())
    wait_until(service.ready, "it has started")
    (old,) = service.children
    threads = len(os.listdir(f"/proc/{service.pid}/task"))
    (copy / ".env").write_bytes(b"THREADS=\xff")
    (copy / "gunicorn.conf.py").rename(copy / "away")
    service.send(signal.SIGHUP)
    wait_until(lambda: old not in service.children and service.ready(), "another worker is ready")
    assert len(os.listdir(f"/proc/{service.pid}/task")) == threads
    assert service.stop() == 0
    (copy / "away").rename(copy / "gunicorn.conf.py")
    with pytest.raises(AssertionError, match=r"\.env: cannot be read"):
        service.start()


def test_a_misspelt_name_in_env_gets_a_warning(tmp_path, programs, broker, copy):
    more = "\nVALIDATION_TIMOUT=9\nthreads=3\nPUBLISH=8001\nCOMPOSE_PROFILES=x\n"
    (copy / ".env").write_text((ROOT / ".env").read_text() + more)
    service = Service(tmp_path, broker)
    service.command = ["env", f"--chdir={copy}", *service.command]
    programs.append(service.start())
    wait_until(service.ready, "it has started")
    assert service.stop() == 0  # now all lines are written
    warned = re.findall(r"WARNING gunicorn: (.*)", service.said())
    wrong = "VALIDATION_TIMOUT", "threads"
    assert warned == [f".env names {name}, which no program reads" for name in wrong]
