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


SAME = """BIND=0.0.0.0:80 BIND=localhost:65535 BIND=[::1]:8000 MQTT_HOST=::1 API_TOKEN=123 API_TOKEN=null
    MQTT_PASSWORD=true LOG_LEVEL=DEBUG LOG_FORMAT=json DATABASE_URL=sqlite:////srv/energy2go/e.db
    DATABASE_URL=sqlite:///a%23b%3Fc.db DATABASE_URL=postgresql://u:p%40@h,i/d?target_session_attrs=any"""
GOOD = [(*text.partition("=")[::2], text.partition("=")[2]) for text in SAME.split()]
GOOD += [("LOG_LEVEL", "debug", "DEBUG"), ("LOG_FORMAT", "JSON", "json"), ("MQTT_USERNAME", " ä$'", " ä$'")]
GOOD += [("API_TOKEN", "x" * 4096, "x" * 4096), ("MQTT_PASSWORD", "ü" * 16_000, "ü" * 16_000)]
GOOD += [("THREADS", "2", 2), ("VALIDATION_RETRY", "0.05", 0.05), ("VALIDATION_TIMEOUT", "86400", 86400.0)]


def test_a_good_value_is_read_as_its_type(environment):
    for name, text, value in GOOD:
        environment[name] = text
        loaded = getattr(settings.load(), name.lower())
        assert (loaded, type(loaded)) == (value, type(value))
        del environment[name]


# What is refused


BAD = [  # a variable, the beginning of the sentence, and values
    (
        "BIND: must be a host and a port from 1 to 65535, such as 127.0.0.1:8000 or [::1]:8000",
        f"[::::]:8000 8000 :8000 127.0.0.1: 127.0.0.1:x 127.0.0.1:65536 ::1:8000 a/b:1 {'a' * 64}:1",
    ),
    ("THREADS: must be a whole number from 2 to 256", "16.0 016 +16 1_6 abc 1 257 16x"),
    (
        "DATABASE_URL: must be sqlite:/// and a path (? as %3F, # as %23), or postgresql:// and ",
        "x sqlite:// sqlite:/// sqlite:///:memory: sqlite:///var/ mysql://a/b sqlite:///a#b.db sqlite:///a?z.db",
    ),
    (
        "DATABASE_URL: libpq does not accept it ",
        "postgresql://h:x/d postgresql://h:65536/d postgresql://h,i/d?port=1,2,3 postgresql://u:%zz@h/d "
        "postgresql://h/d?x=1 postgresql://h/d?service=unknown postgresql://h/d?connect_timeout=x "
        "postgresql://h/d?sslmode=bogus postgresql://h/d?ssl_min_protocol_version=TLSv9 "
        "postgresql://h/d?ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2",
    ),
    ("RETENTION_DAYS: must be a whole number from 0 to 36500; 0 keeps everything", "-1 36501 30d"),
    ("MQTT_PORT: must be a whole number from 1 to 65535", "1e3 0 65536 1883/tcp"),
    ("MQTT_CA_FILE: ", "/nowhere/ca.pem / /dev/null pyproject.toml"),
    ("VALIDATION_RETRY: must be a number of seconds from 0.05 to 30, such as 5", "0.04 30.1 nan inf 5s"),
    ("VALIDATION_TIMEOUT: must be longer than VALIDATION_RETRY, 5", "5"),
    ("VALIDATION_TIMEOUT: ", "0 86401 -1 x nan inf 1m"),
    ("WAITS: must be a whole number from 0 to 10000", "-1 1.0 10001"),
    (
        "MQTT_HOST: must be a host name or an IP address, such as 127.0.0.1 or ::1",
        f"[::1] mqtt://localhost localhost:1883 a/b a..b .a 1:2 :::: fe80::1%lo {'a' * 64}",
    ),
    ("MQTT_PASSWORD: ", f"a\x07b {'x' * 16_001}"),
    ("MQTT_USERNAME: ", "ü" * 16_001),
    ("API_TOKEN: ", "x" * 4097),
    ("LOG_LEVEL: must be DEBUG, INFO, WARNING or ERROR", "verbose TRACE 20"),
    ("LOG_FORMAT: must be text or json", "xml"),
]


def test_a_bad_value_is_refused_in_a_sentence_that_names_it_and_lists_the_right_ones(environment):
    for beginning, values in BAD:
        name, _, right = beginning.partition(":")
        for value in values.split():
            environment[name] = value
            with pytest.raises(SystemExit) as refused:
                settings.load()
            sentence = str(refused.value)
            shown = "" if name in settings.SECRETS else f"={value!r:.200}"
            assert sentence.startswith(f"{name}{shown}:{right}"), value
            assert sentence.endswith(f". See the line of {name} in .env.")
            assert "\n" not in sentence
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


def test_the_settings_are_shown_without_secrets():
    url = "postgresql://user:secret@h,i:1/d?sslpassword=secret"
    shown = settings.shown(Settings(database_url=url, api_token="secret", mqtt_password="secret"))
    assert "secret" not in shown
    assert "DATABASE_URL=postgresql://user@h,i:1/d " in shown
    assert "MQTT_PASSWORD=*** " in shown
    assert "THREADS=4 WAITS=5000" in shown
    assert "API_TOKEN= " in settings.shown(Settings())


def test_a_line_of_env_that_names_no_value_is_refused(tmp_path, monkeypatch, environment):
    monkeypatch.setattr(settings, "DOTENV", tmp_path / ".env")
    for line in ('API_TOKEN="open sesame', "API_TOKEN", "THREADS: 9"):
        settings.DOTENV.write_text(f"THREADS=3\n{line}\n")
        with pytest.raises(SystemExit, match=r"^\.env: line 2 must be NAME=value"):
            settings.load()
    for content in (b"THREADS=3\0", b"'a=b'=7", b"API_TOKEN=\xff"):
        settings.DOTENV.write_bytes(content)
        with pytest.raises(SystemExit, match=r"^\.env: cannot be read \("):
            settings.load()


def test_a_refusal_is_a_line_of_json_if_the_log_is(environment):
    environment |= {"API_TOKEN": " x", "LOG_FORMAT": "Json"}
    with pytest.raises(SystemExit) as refused:
        settings.load()
    said = json.loads(str(refused.value))
    assert list(said) == ["time", "level", "event", "message", "request_id", "logger", "pid"]
    assert said["message"].startswith("API_TOKEN")
