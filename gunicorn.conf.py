"""The process: where it listens, how it logs, and when the service starts and stops in it."""

import contextlib
import gc
import ipaddress
import os
import socket
import sys
import threading
import time
from typing import Any

import msgspec

from kit import logs, server
from kit.mqtt import decode_faster
from kit.settings import VERSION, load, refusal, shown, unknown_names

if sys.stderr is None:  # it is closed; otherwise a socket might get its number, and then the log's lines
    os.dup2(os.open(os.devnull, os.O_WRONLY), logs.STDERR)
settings = load()

OTHER_CLIENTS = 50  # connections that are kept free of waits and streams
worker_connections = server.connections()
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
    """Refuse options of gunicorn that cannot work; `load` has checked the settings."""
    cfg = server.cfg
    if cfg.preload_app:
        raise refusal("preload_app: must stay off, since the service's threads start in the worker.")
    if cfg.workers > 1 and settings.database_url.startswith("sqlite"):
        raise refusal("workers: must be 1 with SQLite; DATABASE_URL=postgresql://… takes more.")
    for name in ("worker_class", "asgi_lifespan"):
        if cfg.settings[name].get() != globals()[name]:
            raise refusal(f"{name}: must stay as gunicorn.conf.py sets it.")
    for name in ("keepalive", "worker_connections", "graceful_timeout"):
        if cfg.settings[name].get() < 1:
            raise refusal(f"{name}: must be at least 1.")
    # SIGHUP loads new code, but no settings: a file that cannot be read just then would end gunicorn.
    server.app.reload = lambda: None


def waits(cfg: Any) -> int:
    """How many requests may wait: WAITS, if there is room for so many connections."""
    return min(settings.waits, max(0, int(cfg.worker_connections) - OTHER_CLIENTS))


def address(listener: Any) -> Any:
    """The IP address where this socket listens; None for one in the file system."""
    return None if listener.family == socket.AF_UNIX else ipaddress.ip_address(listener.getsockname()[0])


def when_ready(server: Any) -> None:
    """Log the settings, and warn about what is allowed but may not be meant."""
    server.log.info("energy2go %s: %s", VERSION, shown(settings), extra={"event": "settings"})
    warnings = [
        ("unknown_variable", f".env names {name}, which no program reads") for name in unknown_names()
    ]
    if (room := waits(server.cfg)) < settings.waits:
        text = f"the limit of descriptors or connections leaves room for WAITS={room} only"
        warnings.append(("few_waits", text))
    for listener in server.LISTENERS if not settings.api_token else ():
        if (found := address(listener)) and not found.is_loopback:
            # A container does not know who can reach its port.
            reached = f"every machine that can reach BIND={str(listener).partition('//')[2]}"
            warnings.append(("open", f"no API_TOKEN is set, so {reached} can use the service"))
    for event, sentence in warnings:
        server.log.warning("%s", sentence, extra={"event": event})


def post_worker_init(worker: Any) -> None:
    """Start the service in the process that answers requests; SIGHUP loads new code here."""
    from app import Service

    stay_on_one_processor()
    decode_faster()
    gc.freeze()  # modules and routes stay, so the collector need not look at them again
    gc.set_threshold(10_000)
    threading.excepthook = lambda args: logs.end_the_process("a thread died", args.exc_value)
    worker.service = contextlib.ExitStack()
    own = msgspec.structs.replace(settings, waits=waits(worker.cfg))
    service = worker.service.enter_context(Service(own, worker.loop))
    worker.on_stop = service.end_waits
    worker.started_by = os.getpid()
    threading.Thread(target=say_when_ready, args=(worker, service), name="ready", daemon=True).start()


def say_when_ready(worker: Any, service: Any) -> None:
    """Wait until broker, equipment and database are ready, and say where to look, and what to try."""
    while any(service.problems().values()):
        if not worker.alive:
            return
        time.sleep(LOOK)
    for listener in worker.sockets:
        url, found = str(listener), address(listener)
        if found is None:
            lines = [f"ready at {url}"]
        elif found.is_unspecified:  # a container does not know at which address others see it
            lines = [f"ready on port {listener.getsockname()[1]} of every address"]
        else:
            lines = [
                f"ready at {url} (the live page), Swagger UI at {url}/swagger/; try:",
                f"""  curl --json '{{"description": "Teste"}}' {url}/stations""",
                f"""  curl --json '{{"station_id": 1}}' -H 'Prefer: wait=5' {url}/transactions""",
            ]
        for line in lines:
            worker.log.info("%s", line, extra={"event": "ready"})


def stay_on_one_processor() -> None:
    """Keep this process on the processor where it runs now.

    Python runs one thread at a time. Handing its lock to a thread on another processor and back costs as
    much as the work itself (docs/bench.md). If a sandbox forbids this, the service is only slower.
    """
    with contextlib.suppress(OSError), open("/proc/self/stat", encoding="utf-8") as stat:
        processor = stat.read().rpartition(")")[2].split()[36]  # proc(5): field 39, the 37th after the name
        for thread in os.listdir("/proc/self/task"):  # the log has one already
            os.sched_setaffinity(int(thread), {int(processor)})


def worker_exit(server: Any, worker: Any) -> None:
    """Stop the service. gunicorn may call this twice, and in the master for a worker that never started."""
    if getattr(worker, "started_by", None) == os.getpid():
        worker.started_by = None
        worker.service.close()
