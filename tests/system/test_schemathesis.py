"""Schemathesis with the real service: the OpenAPI document holds for generated requests."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from installation import Installation
from programs import COVERAGE

STREAM = "/events"  # it does not end, so tests/system/test_streams.py has its tests
TOKEN = "open-sesame"  # the check `ignored_auth` needs one
CONFIGURATION = f"""
hooks = "hooks.py"
request-timeout = 30

[generation]
deterministic = true  # the same requests in every run
database = "none"
max-examples = 10

[auth.openapi]
token = {{ bearer = "{TOKEN}" }}

# All checks are on; `hooks.py` has the one exception.
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx"]

# Of the files that exist it would guess none.
[dictionaries.files]
values = ["index.html", "start.js", "swagger-ui.css"]

[parameters."path.name"]
dictionary = "files"
probability = 0.5

[warnings]
fail-on = [
    "base_url_mismatch", "dictionary_mismatch", "method_not_allowed", "missing_deserializer", "unmatched_filter",
    "unresolvable_reference", "unsupported_regex", "unused_openapi_auth",
]
"""  # noqa: E501
HOOKS = '''
import schemathesis

UNFORESEEABLE = (
    b'"detail":"body.station_id: There is no station ',
    b'"detail":"Idempotency-Key: ',
    b'"detail":"query.to: must be later than query.from',
    b'"detail":"query.step: must be at least ',
    b'"detail":"If-Match: ',
    b'"detail":"headers.If-Match: ',  # it also sends 0, which the pattern excludes
)


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """No schema can say which stations exist, which keys were used, and which tags are current."""
    return not (
        type(failure).__name__ == "RejectedPositiveData"
        and any(detail in response.content for detail in UNFORESEEABLE)
    )
'''
CHECKS = """allow_header_conformance content_type_conformance ensure_resource_availability ignored_auth
    missing_required_header negative_data_rejection not_a_server_error positive_data_acceptance
    response_headers_conformance response_schema_conformance status_code_conformance unsupported_method
    use_after_free"""


@pytest.fixture
def guarded(tmp_path, programs):
    """The service with a token."""
    installed = Installation(tmp_path, programs, API_TOKEN=TOKEN)
    for program in (installed.broker, installed.equipment, installed.service):
        program.start()
    installed.ready()
    return installed.service


def run_it(guarded, tmp_path: Path) -> Path:
    """Run Schemathesis, which must find nothing; returns the name of its report."""
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    (tmp_path / "hooks.py").write_text(HOOKS)
    report = tmp_path / "report.ndjson"
    # From a URL, it would leave out that URL.
    (tmp_path / "openapi.json").write_bytes(guarded.get("/openapi.json").body)
    command = [str(Path(sys.executable).with_name("st")), "run", "openapi.json", f"--url={guarded.url}"]
    command += [f"--exclude-path={STREAM}", "--no-color", f"--report-ndjson-path={report}"]
    # Schemathesis is not our code, so do not measure its coverage.
    environment = {name: value for name, value in guarded.environment.items() if name not in COVERAGE}
    environment |= {"PYTHONPATH": str(tmp_path)}
    # It writes its caches where it runs.
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    return report


def test_the_service_does_what_the_document_says(guarded, tmp_path):
    checked = Counter()
    for event in map(json.loads, run_it(guarded, tmp_path).read_text().splitlines()):
        for checks in event.get("ScenarioFinished", {}).get("recorder", {}).get("checks", {}).values():
            checked.update(check["name"] for check in checks)
    assert min(checked[name] for name in CHECKS.split()) > 100
    assert "Traceback" not in guarded.said()
    assert guarded.get("/readyz").status == 200
