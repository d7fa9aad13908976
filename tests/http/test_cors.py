"""Cross-origin requests (WHATWG Fetch section 3.2)."""

from __future__ import annotations

import pytest

from cllm.http import DeferredResponse, HttpHandler, HttpRequest, HttpResponse, cors
from tests.http.handling import call, header, says


def with_cors(*origins: str) -> HttpHandler:
    handler = HttpHandler()
    handler.add_middleware(cors(origins))
    handler.get("/a", says("a"))
    deferred = DeferredResponse()
    deferred.resolve(HttpResponse(200))
    handler.get("/deferred", lambda request: deferred)
    return handler


PAGE = ("Origin", "https://page.example")
PREFLIGHT = ("Access-Control-Request-Method", "POST")


def test_a_preflight_is_answered_for_an_allowed_origin() -> None:
    wanted = ("Access-Control-Request-Headers", "content-type, authorization")
    response = call(with_cors(PAGE[1]), "OPTIONS", "/a", PAGE, PREFLIGHT, wanted)
    assert response.status == 200
    assert header(response, "Access-Control-Allow-Origin") == PAGE[1]
    assert "POST" in (header(response, "Access-Control-Allow-Methods") or "")
    assert header(response, "Access-Control-Allow-Headers") == wanted[1]
    assert int(header(response, "Access-Control-Max-Age") or "") > 0
    assert header(response, "Vary") == "Origin"


def test_a_preflight_from_elsewhere_gets_no_permission() -> None:
    response = call(with_cors("https://other.example"), "OPTIONS", "/a", PAGE, PREFLIGHT)
    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


def test_options_without_the_preflight_field_is_an_ordinary_request() -> None:
    response = call(with_cors(PAGE[1]), "OPTIONS", "/a", PAGE)
    assert header(response, "Allow") == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(("path", "status"), [("/a", 200), ("/nothing", 404)])
def test_an_allowed_page_may_read_every_answer_errors_too(path: str, status: int) -> None:
    response = call(with_cors(PAGE[1]), "GET", path, PAGE)
    assert response.status == status
    assert header(response, "Access-Control-Allow-Origin") == PAGE[1]
    assert header(response, "Access-Control-Expose-Headers") == "*"
    assert header(response, "Vary") == "Origin"


@pytest.mark.parametrize("fields", [(), (("Origin", "https://other.example"),)])
def test_other_answers_vary_so_that_no_cache_mixes_them(
    fields: tuple[tuple[str, str], ...],
) -> None:
    response = call(with_cors(PAGE[1]), "GET", "/a", *fields)
    assert header(response, "Access-Control-Allow-Origin") is None
    assert header(response, "Vary") == "Origin"


def test_any_origin_needs_no_vary() -> None:
    response = call(with_cors("*"), "GET", "/a", PAGE)
    assert header(response, "Access-Control-Allow-Origin") == "*"
    assert header(response, "Vary") is None
    assert header(call(with_cors("*"), "GET", "/a"), "Access-Control-Allow-Origin") is None


def test_a_deferred_response_gets_the_fields_when_it_comes() -> None:
    answer = with_cors("*").handle_request(HttpRequest.build("GET", "/deferred", headers=[PAGE]))
    assert isinstance(answer, DeferredResponse)
    assert answer.response is not None
    assert header(answer.response, "Access-Control-Allow-Origin") == "*"


def test_a_response_given_again_and_again_does_not_collect_fields() -> None:
    handler = HttpHandler()
    handler.add_middleware(cors(["*"]))
    same = HttpResponse.text("same")
    handler.get("/", lambda request: same)
    first = call(handler, "GET", "/", PAGE)
    assert call(handler, "GET", "/", PAGE).headers == first.headers
    assert header(same, "Access-Control-Allow-Origin") is None


def test_what_a_preflight_asks_for_cannot_break_out_of_its_field() -> None:
    wanted = ("Access-Control-Request-Headers", "a\r\nX-Forged: 1")
    answer = with_cors("*").handle_request(
        HttpRequest.build("OPTIONS", "/a", headers=[PAGE, PREFLIGHT, wanted])
    )
    assert isinstance(answer, HttpResponse)
    with pytest.raises(ValueError, match="cannot be sent"):
        answer.encode_head(keep_alive=True)
