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
from kit.connection import LARGEST_HEAD
from kit.settings import VERSION, check_port, load, refusal, shown, unknown_names

if sys.stderr is None:  # it is closed: a socket might get its number, and then our log lines
    os.dup2(os.open(os.devnull, os.O_WRONLY), logs.STDERR)
settings = load()

OTHER_CLIENTS = 50  # connections that are kept free of waits and streams
worker_connections = server.connections()
bind = settings.bind
worker_class = server.Worker
workers = 1
preload_app = False  # the service's threads start in the worker
keepalive = 30  # seconds
graceful_timeout = 3  # seconds; `make run` kills after 5
asgi_lifespan = "off"  # the hooks below start and stop the service, after SIGINT too
asgi_disconnect_grace_period = 0  # a client that has gone gives its place back at once
limit_request_line = 8190  # bytes; gunicorn's highest
limit_request_field_size = LARGEST_HEAD  # a limit for the whole head
forwarder_headers = ""  # no client sets SCRIPT_NAME or PATH_INFO
control_socket_disable = True  # it would lie in the home directory
logger_class = logs.Quiet
logconfig_dict = logs.configuration(settings)


def on_starting(server: Any) -> None:
    """Refuse gunicorn options that can't work; `load` has checked the settings."""
    options = {name: option.get() for name, option in server.cfg.settings.items()}
    for name in ("preload_app", "worker_class", "asgi_lifespan"):
        if options[name] != globals()[name]:
            raise refusal(f"{name}: must stay as gunicorn.conf.py sets it.")
    for name in ("keepalive", "worker_connections", "graceful_timeout", "workers"):
        if options[name] < 1:
            raise refusal(f"{name}: must be at least 1.")
    if options["workers"] > 1 and settings.database_url.startswith("sqlite"):
        raise refusal("workers: must be 1 with SQLite; DATABASE_URL=postgresql://… takes more.")
    for where in server.cfg.address:
        if isinstance(where, tuple) and not server.cfg.reuse_port:
            check_port("BIND", where)
    server.app.reload = lambda: None  # SIGHUP loads new code; an unreadable setting would end gunicorn


def waits(cfg: Any) -> int:
    """How many requests may wait: WAITS, unless the limit of connections is too low."""
    return min(settings.waits, max(0, int(cfg.worker_connections) - OTHER_CLIENTS))


def address(listener: Any) -> Any:
    """A listening socket's IP address; None for a Unix socket."""
    return None if listener.family == socket.AF_UNIX else ipaddress.ip_address(listener.getsockname()[0])


def when_ready(server: Any) -> None:
    """Log the settings. Warn about settings that are valid but probably unintended."""
    server.log.info("energy2go %s: %s", VERSION, shown(settings), extra={"event": "settings"})

    def warn(event: str, sentence: str) -> None:
        server.log.warning("%s", sentence, extra={"event": event})

    for name in unknown_names():
        warn("unknown_variable", f".env names {name}, which no program reads")
    if (most := waits(server.cfg)) < settings.waits:
        warn("few_waits", f"the limit of descriptors or connections leaves room for WAITS={most} only")
    for listener in server.LISTENERS if not settings.api_token else ():
        if (ip := address(listener)) and not ip.is_loopback:
            # A container doesn't know who can reach its port.
            reached = f"every machine that can reach BIND={str(listener).partition('//')[2]}"
            warn("open", f"no API_TOKEN is set, so {reached} can use the service")


def post_fork(server: Any, worker: Any) -> None:
    """With SQLite, keep Peewee from loading PostgreSQL's driver: 16 MB, and a fifth of the start."""
    if settings.database_url.startswith("sqlite"):
        sys.modules["psycopg"] = None  # type: ignore[assignment]  # then importing it fails


def post_worker_init(worker: Any) -> None:
    """Start the service in the process that answers requests; SIGHUP loads new code here."""
    from app import Service

    stay_on_one_processor()
    gc.freeze()  # the collector need not check modules and routes again
    gc.set_threshold(10_000)
    threading.excepthook = lambda args: logs.end_the_process("a thread died", args.exc_value)
    worker.service = contextlib.ExitStack()
    own = msgspec.structs.replace(settings, waits=waits(worker.cfg))
    service = worker.service.enter_context(Service(own, worker.loop))
    worker.on_stop = service.end_waits
    lines = [line for listener in worker.sockets for line in welcome(listener)]
    threading.Thread(target=log_when_ready, args=(worker, service, lines), name="ready", daemon=True).start()


def welcome(listener: Any) -> list[str]:
    """Our address, and requests to try there."""
    url, ip = str(listener), address(listener)
    if ip is None:
        return [f"ready at {url}"]
    if ip.is_unspecified:  # a container doesn't know its address on the host
        return [f"ready on port {listener.getsockname()[1]} of every address"]
    return [
        f"ready at {url} (the live page), Swagger UI at {url}/swagger/; try:",
        f"""  curl --json '{{"description": "Teste"}}' {url}/stations""",
        f"""  curl --json '{{"station_id": 1}}' -H 'Prefer: wait=5' {url}/transactions""",
    ]


def log_when_ready(worker: Any, service: Any, lines: list[str]) -> None:
    """Log these once the broker, the equipment and the database work."""
    while any(service.problems().values()):
        if worker.stopping:
            return
        time.sleep(0.1)
    for line in lines:
        worker.log.info("%s", line, extra={"event": "ready"})


def stay_on_one_processor() -> None:
    """Pin this process to its current processor.

    Python runs one thread at a time. Handing its lock to a thread on another processor and back costs as
    much as the work itself (docs/bench.md). If a sandbox forbids this, the service is only slower.
    """
    with contextlib.suppress(OSError), open("/proc/self/stat", encoding="utf-8") as stat:
        processor = stat.read().rpartition(")")[2].split()[36]  # proc(5): field 39, the 37th after the name
        for thread in os.listdir("/proc/self/task"):  # the log has one already
            os.sched_setaffinity(int(thread), {int(processor)})


def worker_exit(server: Any, worker: Any) -> None:
    """Stop the service. gunicorn may call this twice, and in the master, which has none."""
    if service := getattr(worker, "service", None):
        service.close()
