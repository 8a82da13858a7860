"""Swagger UI loads nothing from other hosts, and files are sent as files."""

import re

from calls import assert_problem, send


def test_swagger_ui_refers_to_files_of_this_service_only(api):
    answer = api.get("/swagger/")
    assert answer.headers["Content-Type"].lower() == "text/html; charset=utf-8"
    tags = answer.html.find_all()
    references = [tag[name] for tag in tags for name in ("src", "href") if tag.has_attr(name)]
    assert len(references) == 4
    types = {"css": "text/css", "js": "(text|application)/javascript", "png": "image/png"}
    for reference in references:
        assert re.fullmatch(r"/swagger/[a-z0-9.-]+", reference)
        given = api.get(reference, status=200).headers["Content-Type"]
        assert re.match(types[reference.rpartition(".")[2]], given)
    start = api.get("/swagger/start.js").text
    for text in (answer.text, start):
        assert not re.search(r"https?:|['\"]//|import", text)
    # The style sheet contains its images.
    for location in re.findall(r"url\(([^)]{0,8})", api.get("/swagger/swagger-ui.css").text):
        assert location.strip("'\"").startswith("data:")
    # No script and no style is inline.
    scripts = answer.html.find_all("script")
    assert [bool(script["src"]) and script.string for script in scripts] == [None, None]
    assert not answer.html.find_all("style")
    assert not [name for tag in tags for name in tag.attrs if name.startswith("on") or name == "style"]
    for option in ('url: "/openapi.json"', "tryItOutEnabled: true", "validatorUrl: null"):
        assert option in start
    assert api.get("/swagger").body == answer.body == api.get("/swagger/index.html").body


def test_a_file_that_did_not_change_is_not_sent_again(api):
    tag = api.get("/swagger/swagger-ui.css").headers["Etag"]
    answer = send(api, "GET", "/swagger/swagger-ui.css", If_None_Match=tag)
    assert (answer.status_int, answer.body) == (304, b"")


NOT_SERVED = """
    ..%2f..%2fapp.py %2e%2e/app.py ../../app.py ..%2f..%2f..%2fapp.py .. . %2e %2e%2e ..%2f ..%5c..%5capp.py
    %2fetc%2fpasswd /etc/passwd %00 start.js%00 start.js%00.html ....//....//app.py %252e%252e%252fapp.py
    .env nope vendor swagger %ff ~root
"""


def test_nothing_is_served_but_the_files_of_the_pages(api):
    for name in [*NOT_SERVED.split(), "a" * 300, "a" * 5000]:
        for folder in ("swagger", "static"):
            assert_problem(send(api, "GET", f"/{folder}/{name}"), 404, "Not Found")
