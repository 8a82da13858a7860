"""The real programs. Each test starts them on free ports, in its own folder, and ends them by pid."""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MIGRATIONS = str(ROOT / "migrations")
PROCFILE = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
ACCOUNTS = {
    "MQTT_USERNAME": "energy2go",
    "MQTT_PASSWORD": "service-secret",
    "VALIDATOR_USERNAME": "validator",
    "VALIDATOR_PASSWORD": "equipment-secret",
}

SECRETS = {  # instead of those passwords, and a token
    "MQTT_PASSWORD": "Kolibri-71",
    "VALIDATOR_PASSWORD": "Zaunkoenig-72",
    "API_TOKEN": "Mauersegler-73",
}

# A program that gets these measures its own coverage (`make coverage`).
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}

# These ports are below those that the kernel gives to clients. Each xdist worker has its own ports,
# and two runs at the same time start at different places.
PORTS = itertools.islice(itertools.cycle(range(20_000, 30_000, 20)), os.getpid() * 37 % 500, None)
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw19").removeprefix("gw"))


# Sockets that keep ports for this process. One test uses far fewer.
HELD: deque[socket.socket] = deque()
MOST_HELD = 200


def free_port() -> int:
    """A free port on 127.0.0.1 that no other test process will choose, even if nothing listens there."""
    for port in PORTS:
        holder = socket.socket()
        try:
            holder.bind(("127.0.0.1", port + WORKER))
        except OSError:
            holder.close()
            continue
        # After bind: a server, which sets this too, can listen here. The bind above cannot take the port.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if len(HELD) == MOST_HELD:
            HELD.popleft().close()
        HELD.append(holder)
        return port + WORKER
    return 0


def wait_until(condition: Callable, what: str, seconds: float = 60):
    """Return the first true value of `condition`; after `seconds`, raise AssertionError with `what`."""
    deadline, pause = time.monotonic() + seconds, 0.01
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(pause)
        pause = min(0.1, 1.1 * pause)  # to ask takes time from what we wait for
    raise AssertionError(f"not within {seconds} s: {what}")


def listening(port: int) -> bool:
    """True if a program accepts connections on this port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def children(pid: int) -> list[int]:
    """The pids of a process's children."""
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def kill(pids: list[int]) -> None:
    """Kill processes (SIGKILL), and wait until they are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), "they are gone")


def assert_nothing_listens(port: int) -> None:
    """Otherwise a test would talk to a program of another test run."""

    def available() -> bool:
        # Bind as a server does. A connection would wait in the queue of a program that never accepts.
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return True
        return False

    wait_until(available, f"nothing else listens on {port}", 2)


class Program:
    """One process. Its standard error goes to `log`, its standard output to `output`."""

    root = ROOT  # the checkout that it belongs to

    def __init__(self, name: str, command: str | list, folder: Path, environment: dict):
        self.name, self.folder = name, folder
        self.command = shlex.split(command) if isinstance(command, str) else command
        own = {"PATH": os.environ["PATH"], "HOME": str(folder)} | COVERAGE
        self.environment = own | environment
        self.log, self.output = folder / f"{name}.log", folder / f"{name}.out"
        self.process, self._before = None, 0  # how long the log was when it started

    def start(self):
        """Start it and return itself, without waiting until it is ready."""
        assert not self.running
        with self.log.open("ab") as log, self.output.open("ab") as output:
            self._before = log.tell()
            self.process = subprocess.Popen(
                self.command,
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
            )
        return self

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it (SIGKILL)."""
        self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int | None:
        """Send a signal, wait for the end, and return the exit status. Continue a frozen process first."""
        if self.running:
            if "(stopped)" in Path(f"/proc/{self.pid}/status").read_text():
                self.send(signal.SIGCONT)
            self.send(number)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"{self.name} did not end within {seconds} s:\n{self.said()}") from None
        return self.process.returncode if self.process else None

    def terminate(self) -> None:
        """Ask it to end (SIGTERM), and do not wait for it."""
        if self.running:
            self.send(signal.SIGTERM)
            self.send(signal.SIGCONT)  # a frozen program must wake up to end

    def close(self, seconds: float = 30) -> None:
        """End it with SIGTERM; after `seconds`, kill it and its children."""
        self.terminate()
        if self.running:
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.crash()

    @property
    def children(self) -> list[int]:
        """The pids of its child processes."""
        return children(self.pid)

    def crash(self) -> None:
        """Kill it and its children (SIGKILL), and wait until they are gone."""
        children = self.children
        self.kill()
        kill(children)

    def said(self) -> str:
        """What it has written to standard error since its last start."""
        log = self.log.read_bytes() if self.log.exists() else b""
        return log[self._before :].decode(errors="replace")


class Broker(Program):
    """The real Mosquitto, with the project's configuration and more lines at the ends of its files."""

    def __init__(self, folder: Path, port: int | None = None, conf: str = "", acl: str = "", **environment):
        self.port = port or free_port()
        self.environment_of_clients = (
            {"MQTT_HOST": "127.0.0.1", "MQTT_PORT": str(self.port)} | ACCOUNTS | environment
        )
        command = [*shlex.split(PROCFILE["broker"].removeprefix("exec "))[:-1], str(folder / "broker")]
        super().__init__("broker", command, folder, self.environment_of_clients)
        if conf or acl:
            self.root = folder / "amended"
            (self.root / "deploy").mkdir(parents=True, exist_ok=True)
            added = {"mosquitto.conf": conf, "deploy/mosquitto.acl": acl, "deploy/mosquitto.sh": ""}
            for path, more in added.items():
                (self.root / path).write_text((ROOT / path).read_text() + more)

    def start(self):
        assert_nothing_listens(self.port)
        super().start()
        wait_until(lambda: listening(self.port) or not self.running, "the broker listens")
        assert self.running, self.said()
        return self


class Equipment(Program):
    """The real equipment; `build` names another build of it."""

    def __init__(
        self, folder: Path, broker: Broker, build: str = "", name: str = "validator", **environment
    ):
        command = build or PROCFILE["validator"].removeprefix("exec ")
        defaults = {"VALIDATOR_CONFIRM_RATE": "0.6", "VALIDATOR_SEED": "1", "VALIDATOR_ID": name}
        environment = broker.environment_of_clients | defaults | environment
        super().__init__(name, command, folder, environment)


class Answer:
    """An HTTP answer: `status`, `headers`, `body`, `json` (None if the body is not JSON)."""

    def __init__(self, status: int, headers, body: bytes):
        self.status, self.headers, self.body = status, headers, body
        plain = "json" in headers.get("Content-Type", "") and "Content-Encoding" not in headers
        self.json = json.loads(body) if plain else None


class HttpServer(Program):
    """A program that answers HTTP on `port`."""

    def __init__(self, name: str, command: list, folder: Path, environment: dict, port: int):
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        super().__init__(name, command, folder, environment)

    def start(self):
        assert_nothing_listens(self.port)
        super().start()
        wait_until(lambda: listening(self.port) or not self.running, f"the {self.name} listens")
        assert self.running, self.said()
        return self

    def crash(self) -> None:
        """Kill it and its children, and wait until the port is free."""
        super().crash()
        wait_until(lambda: not listening(self.port), "nothing listens")

    def request(self, method: str, path: str, body=None, timeout: float = 60, **headers) -> Answer:
        """Send a request; raises OSError without an answer. `body` is bytes or becomes JSON."""
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def get(self, path: str, **headers) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, path: str, body, **headers) -> Answer:
        return self.request("POST", path, body, **headers)

    def says(self, part: str):
        """What /readyz says of the database, the broker or the equipment; "" without an answer."""
        with contextlib.suppress(OSError):
            return self.get("/readyz").json.get(part, "")
        return ""

    def alive(self) -> bool:
        """True once it has its database; the broker may be away."""
        with contextlib.suppress(OSError):
            return self.get("/healthz").status == 200
        return False

    @property
    def worker(self) -> int:
        """The pid of gunicorn's worker."""
        return wait_until(lambda: self.children, "there is a worker")[-1]

    def reload(self) -> None:
        """Let another worker take the place of this one."""
        old = self.worker
        self.send(signal.SIGHUP)
        wait_until(lambda: old not in self.children, "the old worker has gone")

    def ready(self) -> bool:
        """True once transactions can be stored and asked about, whether or not equipment is online."""
        return self.says("database") == self.says("broker") == "ok"

    def online(self) -> bool:
        """True once a transaction can be settled."""
        return self.ready() and dict(self.says("equipment") or {}).get("validator") == "online"

    def settles(self, **headers) -> bool:
        """True if a new transaction gets its verdict."""
        assert self.post("/stations", {"description": "Teste"}, **headers).status == 201
        answer = self.post("/transactions", {"station_id": 1}, Prefer="wait=20", **headers)
        return answer.status == 201 and answer.json["status"] in ("COMPLETED", "ERROR")


class Service(HttpServer):
    """The real service: gunicorn with the project's configuration."""

    def __init__(
        self, folder: Path, broker: Broker, port: int | None = None, name: str = "service", **environment
    ):
        self.broker, port = broker, port or free_port()
        command = [sys.executable, *shlex.split(PROCFILE["web"].removeprefix("exec "))[1:]]
        own = {"BIND": f"127.0.0.1:{port}", "DATABASE_URL": f"sqlite:///{folder}/energy2go.db"}
        super().__init__(name, command, folder, broker.environment_of_clients | own | environment, port)


class Nginx(HttpServer):
    """The real nginx with the project's configuration, in front of these services."""

    def __init__(self, services: list[Service]):
        port = free_port()
        # If root starts nginx, it runs as another user, which may not enter pytest's folders.
        folder = Path(tempfile.mkdtemp(prefix="energy2go-nginx-"))
        folder.chmod(0o755)
        text = (ROOT / "deploy/nginx.conf").read_text()
        for found, wanted in (("listen ", [port]), ("server ", [service.port for service in services])):
            (line,) = re.findall(rf"^ *{found}127\.0\.0\.1:\d+.*;.*\n", text, re.MULTILINE)
            text = text.replace(
                line, "".join(re.sub(r":\d+", f":{number}", line, count=1) for number in wanted)
            )
        (folder / "nginx.conf").write_text(text)
        nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        options = ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr", "-g", "daemon off;"]
        super().__init__("nginx", [nginx, *options], folder, {}, port)

    def close(self, seconds: float = 30) -> None:
        """End it and remove its folder."""
        super().close(seconds)
        shutil.rmtree(self.folder)
