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
from programs import ROOT, Service, free_port, wait_until


def test_all_threads_stay_on_one_processor_and_no_driver_of_postgresql_is_loaded(running):
    service = running()
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    (worker,) = service.children
    status = [path.read_text() for path in Path(f"/proc/{worker}/task").glob("*/status")]
    allowed = [re.search(r"Cpus_allowed_list:\s*(\S+)", one)[1] for one in status]
    assert len(allowed) >= 4  # the loop, the readers, the ledger and paho
    assert len(set(allowed)) == 1
    assert int(allowed[0]) in os.sched_getaffinity(0)
    loaded = [Path(f"/proc/{pid}/maps").read_text() for pid in (service.pid, worker)]
    assert all("msgspec" in one and "psycopg" not in one for one in loaded)
    assert "gunicorn_h1c" in loaded[1]


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
        ("--graceful-timeout=0", "graceful_timeout: must be at least 1"),
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
    assert (json.loads(line)["message"] if log_format == "json" else line).startswith(sentence)


def test_it_names_its_addresses_once_equipment_is_there(tmp_path, run, broker, equipment):
    port, other, path = free_port(), free_port(), tmp_path / "socket"
    bind = f"--bind [::1]:{other} --bind 0.0.0.0:{port} --bind unix:{path}"
    options = broker.environment_of_clients | {"BIND": "127.0.0.1:1", "GUNICORN_CMD_ARGS": bind}
    service = run(Service, broker, port=port, **options)
    wait_until(service.ready, "transactions can be stored")
    assert service.get("/readyz").json["equipment"] == {}
    assert "ready at" not in service.said()
    equipment()
    for line in (f"at http://[::1]:{other} (", f"on port {port} of every address", f"at unix:{path}"):
        wait_until(lambda: f"ready {line}" in service.said(), line)  # noqa: B023
    assert service.get("/readyz").status == 200
    warned = re.findall("WARNING gunicorn: .*API_TOKEN.* reach BIND=(.*) can", service.said())
    assert warned == [f"0.0.0.0:{port}"]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
    (settings,) = re.findall("INFO gunicorn: energy2go .*", service.said())
    for text in (VERSION, f"MQTT_PORT={broker.port}", "DATABASE_URL=sqlite:///"):
        assert text in settings


def test_nothing_is_opened_by_importing(tmp_path):
    code = "import os, threading, app; print(threading.active_count(), sorted(os.listdir('/proc/self/fd')))"
    environment = {"PYTHONPATH": str(ROOT)}
    said = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert said.startswith("1 ")
    assert len(said.split(",")) <= 4  # the standard streams, and the listing
    assert list(tmp_path.iterdir()) == []


def test_a_reload_needs_no_settings_and_a_misspelt_name_gets_a_warning(tmp_path, programs, broker):
    copy = tmp_path / "copy"  # because each folder has its own .env
    copy.mkdir()
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, copy)
    for name in ("kit", "migrations", "static"):
        shutil.copytree(ROOT / name, copy / name)
    more = "\nVALIDATION_TIMOUT=9\nthreads=3\nPUBLISH=8001\nCOMPOSE_PROFILES=x\n"
    (copy / ".env").write_text((ROOT / ".env").read_text() + more)
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
    assert service.stop() == 0  # now all lines are written
    warned = re.findall(r"WARNING gunicorn: (\.env names .*)", service.said())
    wrong = "VALIDATION_TIMOUT", "threads"
    assert warned == [f".env names {name}, which no program reads" for name in wrong]
    (copy / "away").rename(copy / "gunicorn.conf.py")
    with pytest.raises(AssertionError, match=r"\.env: cannot be read"):
        service.start()
