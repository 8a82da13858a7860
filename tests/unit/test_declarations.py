"""A mistake in what a route declares is an import error that names the route."""

import pytest

from kit.api import Api
from kit.errors import NotFound
from schemas import NewStation, Station, StationId


@pytest.fixture
def api():
    return Api("There is no service.")


def refused(api: Api, path: str, handler, *words: str, **options) -> None:
    """Check that decorating this handler raises TypeError with the route's name and these words."""
    with pytest.raises(TypeError) as mistake:
        api.get(path, **options)(handler)
    for word in (f"GET {path} ({handler.__name__})", *words):
        assert word in str(mistake.value)


def right(id: StationId) -> Station:
    """Read a station."""


DOC = '"""Read a station."""'
MISTAKES = {  # a handler, and a word of the error
    "def handle(id: StationId) -> Station: pass": "docstring",
    f"def handle(id) -> Station: {DOC}": "need a type",
    f"def handle(id: StationId): {DOC}": "need a type",
    f"def handle(id: StationId, body: int) -> Station: {DOC}": "Struct",
    f"def handle(id: StationId) -> object: {DOC}": "",
    f"def handle(id: 'StationIdd') -> Station: {DOC}": "StationIdd",
}


def test_a_mistake_in_the_handler_names_the_route(api):
    for source, word in MISTAKES.items():
        names = {"StationId": StationId, "Station": Station}
        exec(source, names)
        refused(api, "/stations/<id>", names["handle"], word)


def test_options_and_arguments_that_do_not_fit_name_the_route(api):
    refused(api, "/stations/<id>", right, "statuss", statuss=201)
    for errors in ((ValueError,), (NotFound, 404), NotFound):
        refused(api, "/stations/<id>", right, errors=errors)
    for path in ("/stations", "/stations/<number>", "/stations/<id>/<other>"):
        refused(api, path, right, "path")

    def create(body: NewStation) -> Station:
        """Create a station."""

    api.post("/stations")(create)
    refused(api, "/stations/<body>", create, "path")
