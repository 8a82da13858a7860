"""Settings from the environment, typed and checked. A bad value stops the program with one sentence."""

import os
import re
import socket
import ssl
import time
import tomllib
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

import msgspec
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from msgspec import Meta

ROOT = Path(__file__).parent.parent
DOTENV = ROOT / ".env"
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
HOST, ADDRESS = r"^[^\s\[\]/]+$", r"^(\[[^\s\[\]/]+\]|[^\s:\[\]/]+):[0-9]{1,5}$"
URL = r"^sqlite:///(?!:memory:)[^?#]*[^?#/]$|^postgres(ql)?://.+"
UNREACHABLE = "255.255.255.255"  # no packet is sent there
SECRETS = ("DATABASE_URL", "MQTT_PASSWORD", "API_TOKEN", "API_TOKEN_OLD")  # never shown
# The equipment and compose read these.
OTHERS = {"USERNAME", "PASSWORD", "ID", "CONFIRM_RATE", "SEED", "DELAY_MS", "VERBOSE"}
OTHERS = {f"VALIDATOR_{name}" for name in OTHERS} | {"PUBLISH", "PUBLISH_PROMETHEUS", "POSTGRES_PASSWORD"}
VALID = {
    "BIND": "a host and a port from 1 to 65535, such as 127.0.0.1:8000 or [::1]:8000",
    "THREADS": "a whole number from 2 to 256",
    "WAITS": "a whole number from 0 to 10000",
    "DATABASE_URL": "sqlite:/// and a path (? as %3F, # as %23), or postgresql:// and the rest of its URL",
    "RETENTION_DAYS": "a whole number from 0 to 36500; 0 keeps everything",
    "MQTT_HOST": "a host name or an IP address, such as 127.0.0.1 or ::1",
    "MQTT_PORT": "a whole number from 1 to 65535",
    "MQTT_USERNAME": "at most 16000 characters",
    "MQTT_PASSWORD": "at most 16000 characters",
    "VALIDATION_RETRY": "a number of seconds from 0.05 to 30, such as 5",
    "VALIDATION_TIMEOUT": "a number of seconds, 86400 at most and more than VALIDATION_RETRY",
    "API_TOKEN": "at most 4096 characters, without a space at either end",
    "API_TOKEN_OLD": "at most 4096 characters, without a space at either end, and only beside API_TOKEN",
    "LOG_LEVEL": "DEBUG, INFO, WARNING or ERROR",
    "LOG_FORMAT": "text or json",
}


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="upper"):
    """The service's settings; `.env` explains each one. An empty variable counts as not set."""

    bind: Annotated[str, Meta(pattern=ADDRESS)] = "127.0.0.1:8000"
    threads: Annotated[int, Meta(ge=2, le=256)] = 4
    waits: Annotated[int, Meta(ge=0, le=10_000)] = 5000
    database_url: Annotated[str, Meta(pattern=URL)] = "sqlite:///var/energy2go.db"
    retention_days: Annotated[int, Meta(ge=0, le=36_500)] = 0
    mqtt_host: Annotated[str, Meta(pattern=HOST)] = "127.0.0.1"
    mqtt_port: Annotated[int, Meta(ge=1, le=65535)] = 18830
    mqtt_username: Annotated[str, Meta(max_length=16_000)] = ""  # MQTT allows 65,535 bytes
    mqtt_password: Annotated[str, Meta(max_length=16_000)] = ""
    mqtt_ca_file: str = ""
    validation_retry: Annotated[float, Meta(ge=0.05, le=30)] = 5
    validation_timeout: Annotated[float, Meta(ge=0.05, le=86400)] = 60
    api_token: Annotated[str, Meta(max_length=4096, pattern=r"^(\S(.*\S)?)?$")] = ""
    api_token_old: Annotated[str, Meta(max_length=4096, pattern=r"^(\S(.*\S)?)?$")] = ""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    @property
    def address(self) -> tuple[str, int]:
        """Where the service listens, as a (host, port) pair."""
        host, _, port = self.bind.rpartition(":")
        return host.strip("[]"), int(port)


FIELDS = {field.encode_name: field for field in msgspec.structs.fields(Settings)}


def load() -> Settings:
    """Read the environment, and `.env` for variables that aren't set there. Raises SystemExit."""
    try:
        content = DOTENV.read_text("utf-8") if DOTENV.exists() else ""
        for one in parse_stream(StringIO(content)):
            if one.error or (one.key and one.value is None):
                raise refusal(
                    f".env: line {one.original.line} must be NAME=value, with a quote at both ends or none."
                )
        for name, text in dotenv_values(stream=StringIO(content)).items():
            os.environb.setdefault(name.encode(), (text or "").encode())  # os.environ may know ASCII only
    except (OSError, ValueError) as error:
        raise refusal(f".env: cannot be read ({error}).") from None
    given = {name: os.environb.get(name.encode(), b"").decode(errors="surrogateescape") for name in FIELDS}
    given = {name: value for name, value in given.items() if value}
    for name, value in given.items():
        text = unquote(value, errors="surrogateescape") if name == "DATABASE_URL" else value
        if not text.isprintable():  # bytes that aren't UTF-8 come as surrogates
            raise refused(name, "must be printable text in UTF-8")
    for name, letters in (("LOG_LEVEL", str.upper), ("LOG_FORMAT", str.lower)):
        given |= {name: letters(given[name])} if name in given else {}
    try:
        settings = msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise refused(str(error).partition(" - at `$.")[2].rstrip("`")) from None
    for name, text in given.items():
        value = getattr(settings, FIELDS[name].name)
        if isinstance(value, int) and str(value) != text:  # msgspec takes 1.0 and 1e1, too
            raise refused(name)
    check_values(settings)
    return settings


def check_values(settings: Settings) -> None:
    """Check the rules that no type expresses. Raises SystemExit."""
    host, port = settings.address
    for name, text in (("BIND", host), ("MQTT_HOST", settings.mqtt_host)):
        try:
            socket.inet_pton(socket.AF_INET6, text) if ":" in text else text.encode("idna")
        except (OSError, UnicodeError):
            raise refused(name) from None
    if not 1 <= port <= 65535:
        raise refused("BIND")
    if settings.api_token_old and not settings.api_token:
        raise refused("API_TOKEN_OLD")
    if settings.validation_timeout <= settings.validation_retry:
        limit = f"must be longer than VALIDATION_RETRY, {settings.validation_retry:g}"
        raise refused("VALIDATION_TIMEOUT", limit)
    if not settings.database_url.startswith("sqlite"):
        check_postgresql(settings.database_url)
    try:
        if settings.mqtt_ca_file:
            ssl.create_default_context(cafile=settings.mqtt_ca_file)
    except OSError as error:
        reason = f"must name a file of certificates in PEM ({error.strerror or error})"
        raise refused("MQTT_CA_FILE", reason) from None


def check_port(variable: str, address: tuple[str, int]) -> None:
    """Raise SystemExit if we can't listen on this address."""
    if {"GUNICORN_FD", "LISTEN_FDS"} & os.environ.keys():  # gunicorn gets its sockets from another process
        return
    try:
        with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise refusal(
            f"{variable}: port {address[1]} on {address[0]} cannot be used ({error.strerror}). "
            f"Choose another with `{variable}=… make run`, or change it in .env."
        ) from None


def check_postgresql(url: str) -> None:
    """Let libpq check this URL without connecting. Its error messages may contain the password."""
    from psycopg import ProgrammingError  # here, because SQLite needs no driver
    from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo
    from psycopg.pq import PGconn

    try:
        given = conninfo_to_dict(url)
        timeout_from_conninfo(given)
    except ProgrammingError as error:
        found = re.match(r'invalid URI query parameter: "\w+"|bad value for \w+', str(error))
        reason = found[0] if found else "malformed URL"
        raise refused("DATABASE_URL", f"libpq does not accept it ({reason})") from None
    hosts = str(given.get("host") or "").count(",") + 1
    connection = PGconn.connect_start(make_conninfo(url, hostaddr=",".join([UNREACHABLE] * hosts)).encode())
    message = connection.error_message.decode(errors="replace")
    connection.finish()
    if found := re.search("(invalid|weak|could not match|definition|.* may not).*", message):
        reason = re.sub('"(.*?)"', lambda quoted: quoted[0] if quoted[1] in given else "…", found[0])
        raise refused("DATABASE_URL", f"libpq does not accept it ({reason})")


def refused(name: str, reason: str = "") -> SystemExit:
    """The refusal for a variable's value. Without a reason, it lists the valid values."""
    value = "" if name in SECRETS else f"={os.environ[name]!r:.200}" if name in os.environ else ""
    return refusal(f"{name}{value}: {reason or f'must be {VALID[name]}'}. See the line of {name} in .env.")


def refusal(sentence: str) -> SystemExit:
    """An exception that ends the program with this sentence, formatted like a log line."""
    if os.environ.get("LOG_FORMAT", "").lower() != "json":
        return SystemExit(sentence)
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    line = {"time": now, "level": "CRITICAL", "event": "refused", "message": sentence, "request_id": None}
    return SystemExit(msgspec.json.encode(line | {"logger": __name__, "pid": os.getpid()}).decode())


def shown(settings: Settings) -> str:
    """All settings in one line, without secrets."""
    values = {name: getattr(settings, field.name) for name, field in FIELDS.items()}
    values |= {name: "***" for name in SECRETS if values[name]}
    url = settings.database_url.partition("?")[0]
    values["DATABASE_URL"] = re.sub("(?<=://)([^:/@]*):.*@", r"\1@", url)
    return " ".join(f"{name}={value}" for name, value in values.items())


def unknown_names() -> list[str]:
    """Names in `.env` that no program reads. They are probably misspelt."""
    names = dotenv_values(DOTENV, interpolate=False).keys() - FIELDS.keys() - OTHERS
    return sorted(name for name in names if not name.startswith(("COMPOSE_", "DOCKER_")))
