"""The environment, read once, typed and checked. A bad value stops the program with one sentence."""

import os
import re
import socket
import ssl
import tomllib
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import msgspec
from dotenv import load_dotenv
from msgspec import Meta

ROOT = Path(__file__).parent.parent
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(ge=0.05, le=86400)]
ADDRESS = r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):[0-9]{1,5}"
SECRETS = ("DATABASE_URL", "MQTT_PASSWORD", "API_TOKEN")  # not to be shown


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="upper"):
    """What the service reads; `.env` explains each line. An empty variable counts as not set."""

    bind: str = "127.0.0.1:8000"
    threads: Annotated[int, Meta(ge=2, le=256)] = 16
    database_url: str = "sqlite:///var/energy2go.db"
    mqtt_host: str = "127.0.0.1"
    mqtt_port: Port = 18830
    mqtt_username: str = ""
    mqtt_password: str = ""
    mqtt_ca_file: str = ""
    validation_retry: Annotated[float, Meta(ge=0.05, le=30)] = 5
    validation_timeout: Seconds = 60
    api_token: str = ""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    @property
    def address(self) -> tuple[str, int]:
        """Where the service listens, as a (host, port) pair."""
        host, _, port = self.bind.rpartition(":")
        return host.strip("[]"), int(port)


def load() -> Settings:
    """Read the environment, and `.env` for what it leaves out; raises SystemExit with a sentence."""
    load_dotenv(ROOT / ".env", override=False)
    known = {field.encode_name for field in msgspec.structs.fields(Settings)}
    try:
        settings = msgspec.convert(
            {k: v for k, v in os.environ.items() if v and k in known}, Settings, strict=False
        )
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        refuse(path.rstrip("`"), reason)
    if not re.fullmatch(ADDRESS, settings.bind) or not 1 <= settings.address[1] <= 65535:
        refuse("BIND", "Expected a host and a port, such as 127.0.0.1:8000 or [::1]:8000")
    if not re.match("sqlite:///(?!:memory:).|postgres(ql)?://.", settings.database_url):
        refuse(
            "DATABASE_URL",
            "Expected sqlite:/// and the path of a file, or postgresql:// and the rest of its URL",
        )
    if settings.mqtt_ca_file:
        try:
            ssl.create_default_context(cafile=settings.mqtt_ca_file)
        except OSError as error:
            refuse("MQTT_CA_FILE", f"Expected a file of certificates in PEM ({error.strerror or error})")
    return settings


def refuse(name: str, reason: str) -> NoReturn:
    """Raise SystemExit with a sentence about this variable."""
    value = "" if name in SECRETS else f"={os.environ[name]!r}"
    raise SystemExit(f"{name}{value}: {reason}. See the line of {name} in .env.") from None


def check_ports(settings: Settings) -> None:
    """Raise SystemExit if a port that `make run` is about to listen on is taken."""
    for variable, address, example in (
        ("BIND", settings.address, "BIND=127.0.0.1:8001"),
        ("MQTT_PORT", ("127.0.0.1", settings.mqtt_port), "MQTT_PORT=18831"),
    ):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise SystemExit(
                f"{variable}: port {address[1]} on {address[0]} cannot be used ({error.strerror}). "
                f"Choose another: {example} make run, or change it in .env."
            ) from None


if __name__ == "__main__":
    check_ports(load())
