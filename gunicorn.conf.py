"""The process: where it listens, how it logs, and when the service starts and stops in it."""

import contextlib
import gc
import logging
import os
import threading
import time
from typing import Any

import msgspec

from kit import logs, server
from kit.settings import load, unknown_names

settings = load()

OTHER_CLIENTS = 50  # connections that are kept free of waits and streams
worker_connections = server.connections()
wanted, room = settings.waits, max(0, worker_connections - OTHER_CLIENTS)
settings = msgspec.structs.replace(settings, waits=min(wanted, room))
bind = settings.bind
worker_class = server.Worker
workers = 1
keepalive = 30  # seconds
graceful_timeout = 3  # seconds; `make run` kills after 5
asgi_lifespan = "off"  # the hooks below start and stop the service, after SIGINT too
asgi_disconnect_grace_period = 0  # a client that has gone gives its place back at once
forwarder_headers = ""  # no client sets SCRIPT_NAME or PATH_INFO
control_socket_disable = True  # it would lie in the home directory
logger_class = logs.Quiet
logconfig_dict = logs.configuration(settings)

LOOK = 0.1  # seconds; how often a service that has just started looks whether it is ready


def on_starting(server: Any) -> None:
    """Refuse what cannot work: threads do not survive a fork, and one SQLite file takes one writer."""
    if server.cfg.preload_app:
        raise SystemExit("preload_app: must stay off, since the service's threads start in the worker.")
    if server.cfg.workers > 1 and settings.database_url.startswith("sqlite"):
        raise SystemExit("workers: must be 1 with SQLite; DATABASE_URL=postgresql://… takes more.")


def when_ready(server: Any) -> None:
    """Warn about what is allowed but may not be meant."""
    host, _ = settings.address
    if host not in ("localhost", "::1") and not host.startswith("127.") and not settings.api_token:
        # A container does not know who can reach its port.
        reached = f"every machine that can reach BIND={settings.bind} can use the service"
        warn(server, "open", f"no API_TOKEN is set, so {reached}")
    if settings.waits < wanted:
        warn(server, "few_waits", f"the limit of descriptors leaves room for WAITS={settings.waits} only")
    for name in unknown_names():
        warn(server, "unknown_variable", f".env names {name}, which no program reads")


def warn(server: Any, event: str, sentence: str) -> None:
    """Log a warning at start."""
    server.log.warning("%s", sentence, extra={"event": event})


def post_worker_init(worker: Any) -> None:
    """Start the service in the process that answers requests; SIGHUP loads new code here."""
    from app import Service

    stay_on_one_processor()
    gc.freeze()  # modules and routes stay, so the collector need not look at them again
    gc.set_threshold(10_000)
    threading.excepthook = end_the_process
    worker.service = contextlib.ExitStack()
    service = worker.service.enter_context(Service(settings, worker.loop))
    worker.on_stop = service.end_waits
    worker.started_by = os.getpid()
    threading.Thread(target=say_when_ready, args=(worker, service), name="ready", daemon=True).start()


def say_when_ready(worker: Any, service: Any) -> None:
    """Wait until broker, equipment and database are ready, and say so."""
    while worker.alive:
        if not any(service.problems().values()):
            say_ready(worker.log)
            return
        time.sleep(LOOK)


def say_ready(log: Any) -> None:
    """Say where to look, and what to try."""
    host, port = settings.address
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    lines = [
        f"ready at {url} (the live page), Swagger UI at {url}/swagger/; try:",
        f"""  curl --json '{{"description": "Teste"}}' {url}/stations""",
        f"""  curl --json '{{"station_id": 1}}' -H 'Prefer: wait=5' {url}/transactions""",
    ]
    if host in ("0.0.0.0", "::"):  # noqa: S104
        # A container does not know at which address others see it.
        lines = [f"ready on port {port} of every address"]
    for line in lines:
        log.info("%s", line, extra={"event": "ready"})


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
    about = {"event": "thread_died"}
    logging.critical("a thread died; the process ends", exc_info=args.exc_value, extra=about)
    logging.shutdown()
    os._exit(1)  # 3 and 4 would halt gunicorn


def worker_exit(server: Any, worker: Any) -> None:
    """Stop the service. gunicorn may call this twice, and in the master for a worker that never started."""
    if getattr(worker, "started_by", None) == os.getpid():
        worker.started_by = None
        worker.service.close()
