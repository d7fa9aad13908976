"""The page's files over HTTP: who gets the page, how it is cached, and that it needs no key."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import requests

from cllm.api import ApiSettings
from cllm.api.tenants import Terms
from cllm.engine import Engine
from cllm.http import HttpError, HttpRequest, HttpResponse
from cllm.option_table import load_settings
from cllm.page.assets import FOLDER, POLICY, Assets, takes_gzip, weights_of
from cllm.page.page import wants_page
from cllm.program import Program
from tests.api.keyed import ring
from tests.page.conftest import Site, serving

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture(scope="module")
def keyed(engine: Engine) -> Iterator[Site]:
    with serving(engine, ApiSettings(api_keys=("secret",))) as site:
        yield site


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("Text/HTML;q=0.1", True),
        ("application/json;q=0.5, text/html", True),
        ("text/html;q=0.5, application/json", False),
        ("text/html, application/json", False),
        ("text/html;q=0", False),
        ("text/html;q=x", False),
        ("*/*", False),
        ("text/*", False),
        ("", False),
        (None, False),
    ],
)
def test_who_gets_the_page(accept: str | None, page: bool) -> None:
    fields = [] if accept is None else [("Accept", accept)]
    assert wants_page(HttpRequest.build("GET", "/", headers=fields)) is page


def test_weights_are_read() -> None:
    assert weights_of("a/b;level=1;Q=0.5, c ; q = 1,, a/b;q=0.2") == {"a/b": 0.5, "c": 1.0}
    accepted = {"gzip": True, "br, *": True, "gzip;q=0, *": False, "br": False, "": False}
    assert {field: takes_gzip(field) for field in accepted} == accepted


def test_the_root_is_a_page_or_the_list_of_endpoints(site: Site) -> None:
    page = requests.get(site.url, headers={"Accept": BROWSER}, timeout=30)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Cache-Control"] == "no-cache"
    assert page.headers["Content-Security-Policy"] == POLICY
    listed = requests.get(site.url, timeout=30)
    assert listed.json()["data"]["name"] == "cLLM"
    assert "Accept" in page.headers["Vary"]
    assert "Accept" in listed.headers["Vary"]


def test_what_the_page_names_exists_and_never_changes(site: Site) -> None:
    page = requests.get(site.url, headers={"Accept": BROWSER}, timeout=30).text
    named = re.findall(r'(?:src|href)="(page/[^"]+)"', page)
    assert len(named) >= 4
    for path in named:
        file = requests.get(site.url + path, timeout=30)
        assert file.status_code == 200
        assert "immutable" in file.headers["Cache-Control"]
        assert file.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_names_all_modules_that_the_chat_loads(site: Site) -> None:
    page = requests.get(site.url, headers={"Accept": BROWSER}, timeout=30).text
    named = set(re.findall(r'rel="modulepreload" href="page/static/\w+/([^"]+)"', page))
    sources = {name: (FOLDER / name).read_text() for name in named}
    imports = {
        (FOLDER / name).parent.joinpath(path).resolve().relative_to(FOLDER).as_posix()
        for name, source in sources.items()
        for path in re.findall(r'from "(\./[^"]+|\.\./[^"]+)"', source)
    }
    assert {"app.js", "chat/view.js"} | imports == named
    assert len(named) > 20 and "monitor/view.js" not in named


def test_every_file_is_served_packed_and_plain() -> None:
    assets = Assets()
    for path in sorted(FOLDER.rglob("*.*")):
        name = path.relative_to(FOLDER).as_posix()
        if name == "index.html":
            continue
        for fields in ([], [("Accept-Encoding", "br, gzip")]):
            request = HttpRequest.build("GET", f"/page/static/{name}", headers=fields)
            answer = assets.file(request, assets.version, name)
            body = answer.body
            assert isinstance(body, bytes)
            assert (gzip.decompress(body) if fields else body) == path.read_bytes()
            assert (("Content-Encoding", "gzip") in answer.headers) == bool(fields)


def test_a_known_tag_is_answered_without_the_file(site: Site) -> None:
    first = requests.get(site.url, headers={"Accept": BROWSER}, timeout=30)
    tag = first.headers["ETag"]
    for known, status in ((tag, 304), (f'"x", W/{tag}', 304), ("*", 304), ('"x"', 200)):
        headers = {"Accept": BROWSER, "If-None-Match": known}
        assert requests.get(site.url, headers=headers, timeout=30).status_code == status


def test_the_version_follows_the_content(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("VERSION")
    (tmp_path / "a.js").write_text("1")
    first = Assets(tmp_path)
    (tmp_path / "a.js").write_text("2")
    second = Assets(tmp_path)
    assert first.version != second.version
    request = HttpRequest.build("GET", "/page/static/x/a.js")
    assert second.file(request, second.version, "a.js").body == b"2"
    with pytest.raises(HttpError, match="reload the page"):
        second.file(request, first.version, "a.js")


@pytest.mark.parametrize(
    "path",
    [
        "page/static/v/none.js",
        "page/static/v/..%2fpage.py",
        "page/static/",
        "page/static/v/a/b/c.js",
    ],
)
def test_other_paths_are_not_found(site: Site, path: str) -> None:
    version = Assets().version
    answer = requests.get(site.url + path.replace("/v/", f"/{version}/"), timeout=30)
    assert answer.status_code in (400, 404)


def test_the_files_need_no_key_and_all_else_does(keyed: Site) -> None:
    page = requests.get(keyed.url, headers={"Accept": BROWSER}, timeout=30)
    assert page.status_code == 200
    for path in re.findall(r'(?:src|href)="(page/[^"]+)"', page.text):
        assert requests.get(keyed.url + path, timeout=30).status_code == 200
    assert requests.get(keyed.url, timeout=30).status_code == 401
    assert (
        requests.get(keyed.url + "props", headers={"Accept": BROWSER}, timeout=30).status_code
        == 401
    )
    render = requests.post(keyed.url + "page/render", json={"markdown": "x"}, timeout=30)
    assert render.status_code == 401
    static = requests.post(keyed.url + "page/static/v/app.js", timeout=30)
    assert static.status_code == 401


def test_rendering_leaves_the_requests_of_a_limited_key(engine: Engine) -> None:
    settings = ApiSettings(key_ring=ring(few=Terms(requests_per_minute=2)))
    with serving(engine, settings) as site:
        body, key = {"markdown": "x"}, {"x-api-key": "few"}
        statuses = [
            requests.post(site.url + path, json=body, headers=key, timeout=30).status_code
            for path in (*["page/render"] * 4, "encode", "encode", "encode", "page/render")
        ]
    assert statuses == [200, 200, 200, 200, 400, 400, 429, 200]


@pytest.mark.parametrize(("words", "page"), [([], True), (["--no-page"], False)])
def test_the_option_turns_it_off(words: list[str], page: bool) -> None:
    program = Program(load_settings(["--port", "0", *words], {}), SimpleQueue())
    assert program.handler.has_handler("POST", "/page/render") is page
    request = HttpRequest.build("GET", "/", headers=[("Accept", BROWSER)])
    answer = program.handler.handle_request(request)
    assert isinstance(answer, HttpResponse)
    assert (("Content-Type", "application/json") in answer.headers) is not page
    assert program.service.settings.page is page


def test_props_say_whether_there_is_a_page(engine: Engine) -> None:
    for page in (True, False):
        with serving(engine, ApiSettings(page=page)) as site:
            assert requests.get(site.url + "props", timeout=30).json()["ui"] is page
