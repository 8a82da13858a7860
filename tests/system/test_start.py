"""How the service starts: on one processor, and not with settings that cannot work."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from programs import ROOT, Service, wait_until


def test_all_threads_that_take_the_interpreters_lock_stay_on_one_processor(running):
    service = running()
    service.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    (worker,) = service.children
    threads = Path(f"/proc/{worker}/task").iterdir()
    allowed = [
        re.search(r"Cpus_allowed_list:\s*(\S+)", (thread / "status").read_text())[1] for thread in threads
    ]
    assert len(allowed) >= 4  # threads of gunicorn, a request, the ledger and paho
    assert len(set(allowed)) == 1
    assert int(allowed[0]) in os.sched_getaffinity(0)


def test_where_a_sandbox_forbids_that_the_service_starts_all_the_same(monkeypatch):
    def refuse(*arguments):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    runpy.run_path(str(ROOT / "gunicorn.conf.py"))["stay_on_one_processor"]()  # raises nothing


@pytest.mark.parametrize(
    ("option", "sentence"),
    [("--preload", "preload_app: must stay off"), ("--workers=2", "workers: must be 1")],
)
def test_gunicorn_refuses_settings_that_cannot_work(service, option, sentence):
    refused = service(ready=False)
    refused.stop()
    refused.command.append(option)
    process = subprocess.run(
        refused.command, cwd=ROOT, env=refused.environment, capture_output=True, text=True, timeout=30
    )
    assert process.returncode != 0
    assert sentence in process.stderr


def test_nothing_is_opened_by_importing(tmp_path):
    code = "import os, threading, app; print(threading.active_count(), sorted(os.listdir('/proc/self/fd')))"
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    assert process.stdout.startswith("1 ")
    assert len(process.stdout.split(",")) <= 4  # the standard streams, and the listing
    assert list(Path(tmp_path).iterdir()) == []


def test_a_misspelt_name_in_env_gets_a_warning(tmp_path, programs, broker):
    """In a copy of the project's folder, because each reads its own .env."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, copy)
    for name in ("kit", "migrations"):
        shutil.copytree(ROOT / name, copy / name)
    more = "\nVALIDATION_TIMOUT=9\nthreads=3\nPUBLISH=8001\nCOMPOSE_PROFILES=x\n"
    (copy / ".env").write_text((ROOT / ".env").read_text() + more)
    service = Service(tmp_path, broker)
    service.command = ["env", f"--chdir={copy}", *service.command]
    programs.append(service.start())
    wait_until(service.ready, "it has started")
    warned = re.findall(r"WARNING gunicorn: (.*)", service.said())
    wrong = "VALIDATION_TIMOUT", "threads"
    assert warned == [f".env names {name}, which no program reads" for name in wrong]
