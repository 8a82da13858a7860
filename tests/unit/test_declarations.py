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


def without_docstring(id: StationId) -> Station: ...


def without_type(id) -> Station:
    """Read a station."""


def without_result(id: StationId):
    """Read a station."""


def without_struct(id: StationId, body: int) -> Station:
    """Read a station."""


def without_schema(id: StationId) -> object:
    """Read a station."""


def with_a_typo(id: "StationIdd") -> Station:  # noqa: F821
    """Read a station."""


def test_a_right_declaration_is_taken(api):
    api.get("/stations/<id>", errors=(NotFound,))(right)
    (declared,) = api.declarations.values()
    assert declared.summary == "Read a station."
    assert declared.path == {"id": StationId}
    assert NotFound in declared.errors


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (without_docstring, "docstring"),
        (without_type, "need a type"),
        (without_result, "need a type"),
        (without_struct, "Struct"),
        (without_schema, ""),
        (with_a_typo, "StationIdd"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_mistake_in_the_handler_names_the_route(api, handler, words):
    refused(api, "/stations/<id>", handler, words)


def test_an_unknown_option_names_the_route(api):
    refused(api, "/stations/<id>", right, "statuss", statuss=201)


@pytest.mark.parametrize("errors", [(ValueError,), (NotFound, 404), NotFound], ids=str)
def test_an_error_that_is_no_refusal_names_the_route(api, errors):
    refused(api, "/stations/<id>", right, errors=errors)


@pytest.mark.parametrize("path", ["/stations", "/stations/<number>", "/stations/<id>/<other>"])
def test_arguments_that_do_not_match_the_path_name_the_route(api, path):
    refused(api, path, right, "path")


def test_a_body_that_is_a_struct_is_no_part_of_the_path(api):
    def create(body: NewStation) -> Station:
        """Create a station."""

    api.post("/stations")(create)
    refused(api, "/stations/<body>", create, "path")
