"""The environment, read once, typed and checked. A bad value stops the program with one sentence."""

import ipaddress
import os
import re
import socket
import ssl
import time
import tomllib
from pathlib import Path
from typing import Annotated, Literal, NoReturn, get_args
from urllib.parse import unquote

import msgspec
import psycopg
from dotenv import dotenv_values
from msgspec import Meta
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo
from psycopg.pq import PGconn

ROOT = Path(__file__).parent.parent
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
# A label of a name has 1 to 63 characters; Python raises UnicodeError for others, not OSError.
NAME, IPV6 = r"[^\s:\[\]/.]{1,63}(\.[^\s:\[\]/.]{1,63})*\.?", "[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
HOST, ADDRESS = f"^(?!.{{254}})({NAME}|{IPV6})$", rf"^(\[{IPV6}\]|{NAME}):[0-9]{{1,5}}$"
POSTGRESQL = r"^postgres(ql)?://.+"
SQLITE = r"^sqlite:///(?!:memory:)[^?#]*[^?#/]$"
UNREACHABLE = "255.255.255.255"  # no packet is sent there
SECRETS = ("DATABASE_URL", "MQTT_PASSWORD", "API_TOKEN")  # not to be shown
# What the equipment and compose read.
OTHERS = {"USERNAME", "PASSWORD", "ID", "CONFIRM_RATE", "SEED", "DELAY_MS", "VERBOSE"}
OTHERS = {f"VALIDATOR_{name}" for name in OTHERS} | {"PUBLISH", "PUBLISH_PROMETHEUS", "POSTGRES_PASSWORD"}

Host = Annotated[
    str, Meta(pattern=HOST, description="a host name or an IP address, such as 127.0.0.1 or ::1")
]
Port = Annotated[int, Meta(ge=1, le=65535, description="a whole number from 1 to 65535")]
Threads = Annotated[int, Meta(ge=2, le=256, description="a whole number from 2 to 256")]
Waits = Annotated[int, Meta(ge=0, le=10_000, description="a whole number from 0 to 10000")]
Retry = Annotated[float, Meta(ge=0.05, le=30, description="a number of seconds from 0.05 to 30, such as 5")]
Timeout = Annotated[
    float,
    Meta(ge=0.05, le=86400, description="a number of seconds, 86400 at most and more than VALIDATION_RETRY"),
]
Bind = Annotated[
    str, Meta(pattern=ADDRESS, description="a host and a port, such as 127.0.0.1:8000 or [::1]:8000")
]
Days = Annotated[
    int, Meta(ge=0, le=36_500, description="a whole number from 0 to 36500; 0 keeps everything")
]
Url = Annotated[
    str,
    Meta(
        pattern=f"{SQLITE}|{POSTGRESQL}",
        description="sqlite:/// and a path (? as %3F, # as %23), or postgresql:// and the rest of its URL",
    ),
]
Level = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"], Meta(description="DEBUG, INFO, WARNING or ERROR")
]
Format = Annotated[Literal["text", "json"], Meta(description="text or json")]


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="upper"):
    """What the service reads; `.env` explains each line. An empty variable counts as not set."""

    bind: Bind = "127.0.0.1:8000"
    threads: Threads = 4
    waits: Waits = 5000
    database_url: Url = "sqlite:///var/energy2go.db"
    retention_days: Days = 0
    mqtt_host: Host = "127.0.0.1"
    mqtt_port: Port = 18830
    mqtt_username: str = ""
    mqtt_password: str = ""
    mqtt_ca_file: str = ""
    validation_retry: Retry = 5
    validation_timeout: Timeout = 60
    api_token: str = ""
    log_level: Level = "INFO"
    log_format: Format = "text"

    @property
    def address(self) -> tuple[str, int]:
        """Where the service listens, as a (host, port) pair."""
        host, _, port = self.bind.rpartition(":")
        return host.strip("[]"), int(port)


FIELDS = {field.encode_name: field for field in msgspec.structs.fields(Settings)}


def load() -> Settings:
    """Read the environment, and `.env` for what it leaves out; raises SystemExit with a sentence."""
    try:
        for name, text in dotenv_values(ROOT / ".env").items():
            os.environb.setdefault(name.encode(), (text or "").encode())  # os.environ may know ASCII only
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(f".env: cannot be read ({error}).") from None
    given = {name: os.environb.get(name.encode(), b"").decode(errors="surrogateescape") for name in FIELDS}
    given = {name: value for name, value in given.items() if value}
    for name, value in given.items():
        if not value.isprintable():  # bytes that are not UTF-8 come as surrogates
            refuse(name, "must be printable text in UTF-8")
    for name, letters in (("LOG_LEVEL", str.upper), ("LOG_FORMAT", str.lower)):
        given |= {name: letters(given[name])} if name in given else {}
    try:
        settings = msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as error:
        refuse(str(error).partition(" - at `$.")[2].rstrip("`"))
    for name, text in given.items():
        value = getattr(settings, FIELDS[name].name)
        if isinstance(value, int) and str(value) != text:  # msgspec takes 1.0 and 1e1, too
            refuse(name)
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """What a type does not say; raises SystemExit with a sentence."""
    for name, host in (("BIND", settings.address[0]), ("MQTT_HOST", settings.mqtt_host)):
        try:
            socket.inet_pton(socket.AF_INET6, host if ":" in host else "::")
        except OSError:
            refuse(name)
    if not 1 <= settings.address[1] <= 65535:
        refuse("BIND", "the port must be from 1 to 65535")
    if settings.validation_timeout <= settings.validation_retry:
        refuse("VALIDATION_TIMEOUT", f"must be longer than VALIDATION_RETRY, {settings.validation_retry:g}")
    for name, text in (("MQTT_USERNAME", settings.mqtt_username), ("MQTT_PASSWORD", settings.mqtt_password)):
        if len(text.encode()) > 65_535:
            refuse(name, "must not be longer than 65,535 bytes (MQTT 5, section 1.5.4)")
    if settings.api_token != settings.api_token.strip() or len(settings.api_token.encode()) > 4096:
        refuse("API_TOKEN", "must have no blank at its begin or end, and 4,096 bytes at most")
    if settings.database_url.startswith("sqlite"):
        if not unquote(settings.database_url, errors="surrogateescape").isprintable():
            refuse("DATABASE_URL", "must be printable text in UTF-8, also where it is written with %")
    else:
        check_postgresql(settings.database_url)
    if settings.mqtt_ca_file:
        try:
            ssl.create_default_context(cafile=settings.mqtt_ca_file)
        except OSError as error:
            refuse("MQTT_CA_FILE", f"must name a file of certificates in PEM ({error.strerror or error})")


def check_postgresql(url: str) -> None:
    """Let libpq check each part of this URL, without a server. Its complaints may quote a password."""
    try:
        given = conninfo_to_dict(url)
        timeout_from_conninfo(given)
        for address in filter(None, str(given.get("hostaddr") or "").split(",")):
            ipaddress.ip_address(address)
    except (psycopg.ProgrammingError, ValueError) as error:
        found = re.match(r'invalid URI query parameter: "\w+"|bad value for \w+', str(error))
        refuse("DATABASE_URL", f"libpq does not accept it ({found[0] if found else 'malformed URL'})")
    if "replication" in given or str(given.get("client_encoding", "utf8")).lower() not in ("utf8", "utf-8"):
        refuse("DATABASE_URL", "replication must not be given, and client_encoding must be utf8")
    hosts = max(str(given.get(name) or "").count(",") for name in ("host", "hostaddr"))
    nowhere = make_conninfo(url, hostaddr=",".join([UNREACHABLE] * (hosts + 1)))
    connection = PGconn.connect_start(nowhere.encode())
    complaint = connection.error_message.decode(errors="replace")
    connection.finish()
    if found := re.search("(invalid|weak|could not match|definition|.* may not).*", complaint):
        sentence = re.sub('"(.*?)"', lambda quoted: quoted[0] if quoted[1] in given else "…", found[0])
        refuse("DATABASE_URL", f"libpq does not accept it ({sentence})")


def refuse(name: str, reason: str = "") -> NoReturn:
    """Raise SystemExit with a sentence about this variable; without a reason, it lists the right values."""
    reason = reason or f"must be {get_args(FIELDS[name].type)[1].description}"
    value = "" if name in SECRETS else f"={os.environ[name]!r:.200}" if name in os.environ else ""
    raise refusal(f"{name}{value}: {reason}. See the line of {name} in .env.") from None


def refusal(sentence: str) -> SystemExit:
    """An exception that ends the program with this sentence, a line like those of the log."""
    if os.environ.get("LOG_FORMAT", "").lower() != "json":
        return SystemExit(sentence)
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    about = {"time": now, "level": "CRITICAL", "event": "refused", "message": sentence, "request_id": None}
    return SystemExit(msgspec.json.encode(about | {"logger": __name__, "pid": os.getpid()}).decode())


def shown(settings: Settings) -> str:
    """All settings in one line, without secrets."""
    values = {name: getattr(settings, field.name) for name, field in FIELDS.items()}
    values |= {name: "***" for name in SECRETS if values[name]}
    url = settings.database_url.partition("?")[0]
    values["DATABASE_URL"] = re.sub("(?<=://)([^:/@]*):.*@", r"\1@", url)
    return " ".join(f"{name}={value}" for name, value in values.items())


def unknown_names() -> list[str]:
    """Names in `.env` that no program reads; they may be misspelt."""
    names = dotenv_values(ROOT / ".env", interpolate=False).keys() - FIELDS.keys() - OTHERS
    return sorted(name for name in names if not name.startswith(("COMPOSE_", "DOCKER_")))


def broker_address(settings: Settings) -> tuple[str, int]:
    """Where the broker of `make run` listens."""
    return "::1" if settings.mqtt_host == "::1" else "127.0.0.1", settings.mqtt_port


def check_ports(settings: Settings) -> None:
    """Raise SystemExit if a port that `make run` is about to listen on is taken."""
    for variable, address, example in (
        ("BIND", settings.address, "BIND=127.0.0.1:8001"),
        ("MQTT_PORT", broker_address(settings), "MQTT_PORT=18831"),
    ):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise refusal(
                f"{variable}: port {address[1]} on {address[0]} cannot be used ({error.strerror}). "
                f"Choose another: {example} make run, or change it in .env."
            ) from None
