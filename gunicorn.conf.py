"""The process: where it listens, how it logs, and when the service starts and stops in it."""

import contextlib
import logging
import os
import threading
from typing import Any

import msgspec
from bottle import request

from kit import logs, worker
from kit.settings import load, unknown_names

settings = load()


room = worker.room(settings.threads, settings.waits, worker.files(), worker.processes())
wanted, settings = settings.waits, msgspec.structs.replace(settings, waits=room.waits)
worker_connections, threads = room.connections, room.threads
bind = settings.bind
worker_class = worker.Worker
workers = 1
keepalive = 30  # seconds
graceful_timeout = 3  # seconds; honcho kills after 5
access_log_format = '%(h)s "%(r)s" %(s)s, %(B)s bytes, %(M)s ms'
forwarder_headers = ""  # no client sets SCRIPT_NAME or PATH_INFO
control_socket_disable = True  # it would lie in the home directory
logger_class = logs.RequestLog
logconfig_dict = logs.configuration(settings)


def on_starting(server: Any) -> None:
    """Refuse what cannot work: threads do not survive a fork, and one SQLite file takes one writer."""
    if server.cfg.preload_app:
        raise SystemExit("preload_app: must stay off, since the service's threads start in the worker.")
    if server.cfg.workers > 1 and settings.database_url.startswith("sqlite"):
        raise SystemExit("workers: must be 1 with SQLite; DATABASE_URL=postgresql://… takes more.")


def when_ready(server: Any) -> None:
    """Say where to look, and warn if other machines can use the service without a token."""
    host, port = settings.address
    if host not in ("localhost", "::1") and not host.startswith("127.") and not settings.api_token:
        server.log.warning("BIND=%s is open to other machines, and no API_TOKEN is set", settings.bind)
    if room.waits < wanted:
        server.log.warning(
            "the limits of descriptors and processes leave room for WAITS=%d only", room.waits
        )
    for name in unknown_names():
        server.log.warning(".env names %s, which no program reads", name)
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    url = f"http://{f'[{here}]' if ':' in here else here}:{port}"
    server.log.info("ready at %s (the live page), Swagger UI at %s/swagger/; try:", url, url)
    server.log.info("""  curl --json '{"description": "Teste"}' %s/stations""", url)
    server.log.info("""  curl --json '{"station_id": 1}' -H 'Prefer: wait=5' %s/transactions""", url)


def post_worker_init(worker: Any) -> None:
    """Start the service in the process that answers requests; SIGHUP loads new code here."""
    from app import Service, app

    stay_on_one_processor()
    threading.excepthook = end_the_process
    app.add_hook("before_request", lambda: request.environ.update({"wsgi.errors": logs.Failures()}))
    worker.service = contextlib.ExitStack()
    worker.service.enter_context(Service(settings, stopping=lambda: not worker.alive))
    worker.started_by = os.getpid()


def stay_on_one_processor() -> None:
    """Keep this process on the processor where it runs now.

    Python runs one thread at a time. Handing its lock to a thread on another processor and back costs as
    much as the work itself (docs/bench.md). If a sandbox forbids this, the service is only slower.
    """
    with contextlib.suppress(OSError), open("/proc/self/stat") as stat:
        processor = stat.read().rpartition(")")[2].split()[36]  # proc(5): field 39, the 37th after the name
        os.sched_setaffinity(0, {int(processor)})


def end_the_process(args: threading.ExceptHookArgs) -> None:
    """End the process if a thread dies, as it would forget requests. gunicorn starts another."""
    logging.critical("a thread died; the process ends", exc_info=args.exc_value)
    os._exit(1)  # 3 and 4 would halt gunicorn


def worker_exit(server: Any, worker: Any) -> None:
    """Stop the service. gunicorn may call this twice, and in the master for a worker that never started."""
    if getattr(worker, "started_by", None) == os.getpid():
        worker.started_by = None
        worker.service.close()
