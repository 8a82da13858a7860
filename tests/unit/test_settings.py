"""The environment: .env lists what the programs read, and a bad value is refused in a sentence."""

import json
import os
import re

import msgspec
import pytest
from dotenv import dotenv_values

from kit import settings
from kit.settings import Settings
from programs import ROOT

FIELDS = {field.encode_name: field for field in msgspec.structs.fields(Settings)}
ENV = dotenv_values(ROOT / ".env", interpolate=False)
ACCOUNTS = {"MQTT_USERNAME", "MQTT_PASSWORD", "VALIDATOR_USERNAME", "VALIDATOR_PASSWORD"}

# A certificate authority for tests; its key was thrown away.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUfRZwASTC5X4yTz4yzxVuP2FkKjkwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjQwNDEwMzhaGA8yMTI2MTAzMTA0MTAz
OFowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCFJ
8ShgZjyAwm3JamjiRA/3IqZ1lX6l/O3ExWXDIXO/shH0GllhIZrps39o309QLiKG
cJGWuqfEKzaAv0bosuujUzBRMB0GA1UdDgQWBBSgGmS5cql7TDMLy+ECOMxzugpY
MDAfBgNVHSMEGDAWgBSgGmS5cql7TDMLy+ECOMxzugpYMDAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQCBjVvOh+/V/kaZLNGoDVYk4kbZ5aBlwqIZ
2lKpadapEgIgMhRMk4OM++1GuHbGLM4rjaeYiOnfqPT/YuDgfw6VH1A=
-----END CERTIFICATE-----
"""


def defaults_of_the_equipment() -> dict[str, str]:
    """The variables that the equipment reads, with its defaults."""
    source = "".join(path.read_text() for path in sorted((ROOT / "validator").glob("*.c")))
    found = re.findall(r'\b(?:text|whole|share)\("([A-Z_]+)", (?:NULL|"([^"]*)")', source)
    found += re.findall(r'getenv\("([A-Z_]+)"\);\s+if \(value == NULL\)\s+value = "([^"]*)"', source)
    assert len(found) > 5
    return dict(found)


@pytest.fixture
def environment():
    """The environment without our variables; it is restored after the test."""
    before = dict(os.environ)
    for name in FIELDS.keys() | ENV.keys():
        os.environ.pop(name, None)
    yield os.environ
    os.environ.clear()
    os.environ.update(before)


def test_every_variable_in_env_is_read_and_the_other_way_round():
    of_compose = {"POSTGRES_PASSWORD"}
    assert ENV.keys() == FIELDS.keys() | defaults_of_the_equipment().keys() | of_compose


def test_only_the_settings_read_the_environment():
    readers = [
        path.name
        for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("kit/*.py")])
        if re.search(r"os\.environ|getenv", path.read_text())
    ]
    assert readers == ["settings.py"]
    readers = [
        path.name for path in sorted((ROOT / "validator").glob("*.c")) if "getenv" in path.read_text()
    ]
    assert readers == ["settings.c"]


def test_every_variable_in_env_is_explained():
    explained = False
    for line in (ROOT / ".env").read_text().splitlines():
        if not line:
            explained = False
        elif line.startswith("#"):
            explained = len(line) > 20
        else:
            assert re.fullmatch(r"[A-Z_]+=\S*", line)
            assert explained, line


def test_the_values_in_env_are_the_defaults(environment):
    assert settings.load() == Settings(
        mqtt_username=ENV["MQTT_USERNAME"], mqtt_password=ENV["MQTT_PASSWORD"]
    )
    for name, default in defaults_of_the_equipment().items():
        if name not in ACCOUNTS:
            assert ENV[name] == default


# What is read


def test_the_environment_wins_over_env(environment):
    environment["THREADS"] = "7"
    environment["MQTT_USERNAME"] = "somebody"
    loaded = settings.load()
    assert (loaded.threads, loaded.mqtt_username) == (7, "somebody")
    assert loaded.mqtt_port == int(ENV["MQTT_PORT"])


def test_an_empty_variable_means_the_default(environment):
    environment.update(dict.fromkeys(FIELDS, ""))
    assert settings.load() == Settings()


def test_what_is_not_ours_is_left_alone(environment):
    environment |= {"threads": "x", "THREADS_": "x", "VALIDATOR_SEED": "x", "mqtt_port": "x"}
    assert settings.load().threads == 4


GOOD = {  # other spellings follow in the test
    "BIND": ["0.0.0.0:80", "localhost:65535", "[::1]:8000"],
    "THREADS": [2],
    "DATABASE_URL": [
        "sqlite:////srv/energy2go/e.db",
        "sqlite:///a%23b%3Fc.db",
        "postgresql://u:p%40@h,i/d?target_session_attrs=any",
    ],
    "MQTT_HOST": ["::1"],
    "MQTT_PORT": [8883],
    "MQTT_PASSWORD": ["true", " ä$HOME'\""],
    "VALIDATION_RETRY": [0.05, 30.0],
    "VALIDATION_TIMEOUT": [86400.0],
    "API_TOKEN": ["123", "null"],
    "LOG_LEVEL": ["DEBUG"],
    "LOG_FORMAT": ["json"],
    "WAITS": [0],
}


def test_a_good_value_is_read_as_its_type(environment):
    cases = [(name, str(value), value) for name, values in GOOD.items() for value in values]
    cases += [
        ("LOG_LEVEL", "debug", "DEBUG"),
        ("LOG_FORMAT", "JSON", "json"),
        ("VALIDATION_RETRY", "5", 5.0),
    ]
    for name, text, value in cases:
        environment[name] = text
        loaded = getattr(settings.load(), name.lower())
        assert (loaded, type(loaded)) == (value, type(value))
        del environment[name]


# What is refused

# Parameters of libpq, with values that they do not take.
LIMITED = (
    "connect_timeout=abc connect_timeout= sslmode=bogus sslcertmode=x channel_binding=x require_auth=x "
    "gssencmode=x target_session_attrs=x load_balance_hosts=x ssl_min_protocol_version=TLSv9 "
    "ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2 keepalives=x keepalives_idle=5x "
    "keepalives_interval=x keepalives_count=x tcp_user_timeout=x"
)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "BIND": "[::::]:8000 [1:2]:8000 8000 :8000 127.0.0.1 127.0.0.1: 127.0.0.1:x 127.0.0.1:0 "
        f"127.0.0.1:65536 ::1:8000 unix:/tmp/x a/b:1 a..b:1 {'a' * 64}:1",
        "THREADS": "16.0 1e1 016 +16 1_6 abc 0 1 257 -4 x 1.5 true 16x",
        "DATABASE_URL": "x sqlite:// sqlite:/// sqlite:///:memory: sqlite:///var/ sqlite:x.db "
        "mysql://a/b /var/energy2.db "
        "sqlite:///a#b.db sqlite:///a?z.db sqlite:///a.db?mode=ro sqlite:///a.db?journal_mode=delete "
        "postgresql://h/d?timeout=3 postgresql://h/d?max_connections=1 postgresql://h/d?stale_timeout=1 "
        "postgresql://h:x/d postgresql://h:0/d postgresql://h:65536/d postgresql://h,i/d?port=1,2,3 "
        "postgresql://u:%zz@h/d postgresql://h/d?service=unknown "
        + " ".join(f"postgresql://h/d?{text}" for text in LIMITED.split()),
        "RETENTION_DAYS": "-1 1.5 36501 30d x never",
        "MQTT_PORT": "1e3 +1883 1883.0 0 -1 65536 x 1883.5 1883/tcp",
        "MQTT_CA_FILE": "/nowhere/ca.pem / /dev/null pyproject.toml",
        "VALIDATION_RETRY": "0 0.04 30.1 -1 x nan inf 5s",
        "VALIDATION_TIMEOUT": "0 5 86401 -1 x nan inf 1m",
        "WAITS": "-1 1.0 1e3 10001 x 1.5",
        "MQTT_HOST": "[::1] mqtt://localhost mqtt://[::1]:1883 localhost:1883 127.0.0.1:1883 "
        f"a/b a..b .a 1:2 :::: fe80::1%lo {'a' * 64}",
        "MQTT_PASSWORD": "a\x07b",
        "LOG_LEVEL": "verbose TRACE 20",
        "LOG_FORMAT": "xml",
    }.items(),
)
def test_a_bad_value_is_refused_in_a_sentence_that_names_it(environment, name, values):
    for value in values.split():
        environment[name] = value
        with pytest.raises(SystemExit) as refused:
            settings.load()
        sentence = str(refused.value)
        shown = "" if name in settings.SECRETS else f"={value!r}"
        assert sentence.startswith(f"{name}{shown}: "), value
        assert sentence.endswith(f". See the line of {name} in .env.")
        assert "\n" not in sentence


RIGHT = {
    "LOG_LEVEL=verbose": "must be DEBUG, INFO, WARNING or ERROR",
    "LOG_FORMAT=xml": "must be text or json",
    "VALIDATION_RETRY=5s": "must be a number of seconds from 0.05 to 30, such as 5",
    "THREADS=abc": "must be a whole number from 2 to 256",
    "WAITS=-1": "must be a whole number from 0 to 10000",
    "RETENTION_DAYS=30d": "must be a whole number from 0 to 36500; 0 keeps everything",
    "VALIDATION_TIMEOUT=5": "must be longer than VALIDATION_RETRY, 5",
    "MQTT_HOST=[::1]": "must be a host name or an IP address, such as 127.0.0.1 or ::1",
    "MQTT_PORT=mqtt": "must be a whole number from 1 to 65535",
    "BIND=8000": "must be a host and a port from 1 to 65535, such as 127.0.0.1:8000 or [::1]:8000",
    "DATABASE_URL=x": "must be sqlite:/// and a path (? as %3F, # as %23), or postgresql:// and ",
}


def test_the_sentence_lists_the_right_values(environment):
    for variable, right in RIGHT.items():
        name, _, value = variable.partition("=")
        environment[name] = value
        with pytest.raises(SystemExit, match=re.escape(f": {right}")):
            settings.load()
        del environment[name]


SECRET = """mysql://user:secret@host/energy2go postgresql://user:a/secret@host/d
    postgresql://user:secret@host:secret/d postgresql://user:secret@host/d?sslmode=secret
    postgresql://user:sec%ret@host/d"""


def test_a_refused_url_is_not_shown_with_its_password(environment):
    for url in SECRET.split():
        environment["DATABASE_URL"] = url
        with pytest.raises(SystemExit) as refused:
            settings.load()
        assert "sec" not in str(refused.value)


TOO_MUCH = [("API_TOKEN", text) for text in (" x", "x ", "x" * 4097)]
TOO_MUCH += [("MQTT_USERNAME", "ü" * 16_001), ("MQTT_PASSWORD", "x" * 16_001)]


def test_what_no_packet_and_no_header_can_carry_is_refused(environment):
    for name, value in TOO_MUCH:
        environment[name] = value
        with pytest.raises(SystemExit, match=rf"^{name}\b.{{0,400}}\.env\.$"):
            settings.load()
        environment[name] = value.strip()[1:-1]
        assert settings.load()


def test_the_settings_are_shown_without_secrets():
    url = "postgresql://user:secret@h,i:1/d?sslpassword=secret"
    shown = settings.shown(Settings(database_url=url, api_token="secret", mqtt_password="secret"))
    assert "secret" not in shown
    assert "DATABASE_URL=postgresql://user@h,i:1/d " in shown
    assert "MQTT_PASSWORD=*** " in shown
    assert "THREADS=4 WAITS=5000" in shown
    assert "API_TOKEN= " in settings.shown(Settings())


@pytest.mark.parametrize("variables", [{"THREADS": "x"}, {"LOG_LEVEL": "x"}, {"DATABASE_URL": "x"}])
def test_a_refusal_is_a_line_of_json_if_the_log_is(environment, variables):
    environment |= variables | {"LOG_FORMAT": "Json"}
    with pytest.raises(SystemExit) as refused:
        settings.load()
    said = json.loads(str(refused.value))
    assert list(said) == ["time", "level", "event", "message", "request_id", "logger", "pid"]
    assert said["message"].startswith(*variables)


def test_a_file_of_certificates_is_accepted(environment, tmp_path):
    (tmp_path / "ca.pem").write_text(CERTIFICATE)
    environment["MQTT_CA_FILE"] = str(tmp_path / "ca.pem")
    assert settings.load().mqtt_ca_file == str(tmp_path / "ca.pem")
    (tmp_path / "ca.pem").write_text(CERTIFICATE[:-100])
    with pytest.raises(SystemExit, match="MQTT_CA_FILE"):
        settings.load()
