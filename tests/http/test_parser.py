"""The request parser, rule by rule; over 400 lines, as RFC 9112 has that many rules.

Sections are of RFC 9112 unless named.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from cllm.http import head as head_module
from cllm.http import parser as parser_module
from cllm.http.errors import ProtocolError
from cllm.http.limits import Limits
from cllm.http.parser import ParserState, RequestParser
from cllm.http.request import HttpRequest

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def parse(data: bytes, limits: Limits | None = None) -> list[HttpRequest]:
    parser = RequestParser(limits or Limits())
    parser.feed(data)
    requests = []
    while (request := parser.next_request()) is not None:
        requests.append(request)
    return requests


def parse_one(data: bytes, limits: Limits | None = None) -> HttpRequest:
    (request,) = parse(data, limits)
    return request


def refusal(data: bytes, limits: Limits | None = None) -> int:
    """The status with which the whole data and, the same, its single bytes are refused."""
    with pytest.raises(ProtocolError) as whole:
        parse(data, limits)
    parser = RequestParser(limits or Limits())
    with pytest.raises(ProtocolError) as bytewise:
        for index in range(len(data)):
            parser.feed(data[index : index + 1])
            while parser.next_request() is not None:
                pass
    assert (whole.value.status, whole.value.message) == (
        bytewise.value.status,
        bytewise.value.message,
    )
    return whole.value.status


def head(*lines: str, start: str = "GET / HTTP/1.1") -> bytes:
    return "\r\n".join([start, "Host: x", *lines, "", ""]).encode("latin-1")


def post(body: bytes, *lines: str) -> bytes:
    return head(*lines, start="POST /p HTTP/1.1") + body


def chunked(body: bytes) -> bytes:
    return post(body, "Transfer-Encoding: chunked")


# Section 3: the request line


def test_a_request_is_its_method_path_query_version_and_fields() -> None:
    request = parse_one(b"GET /a%20b/c?x=1&y=%32&x=3 HTTP/1.1\r\nHost: h:80\r\nAccept: */*\r\n\r\n")
    assert request.method == "GET"
    assert request.target == "/a%20b/c?x=1&y=%32&x=3"
    assert request.path == "/a b/c"
    assert request.query_string == "x=1&y=%32&x=3"
    assert request.query == {"x": "3", "y": "2"}
    assert request.version == "HTTP/1.1"
    assert list(request.headers.items()) == [("Host", "h:80"), ("Accept", "*/*")]
    assert request.body == b""


@pytest.mark.parametrize("method", ["get", "PATCH", "M-SEARCH", "!#$%&'*+-.^_`|~09Az"])
def test_section_3_1_a_method_is_any_token_and_keeps_its_case(method: str) -> None:
    assert parse_one(head(start=f"{method} / HTTP/1.1")).method == method


@pytest.mark.parametrize(
    "line",
    [
        "GET",
        "GET /",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET\t/ HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /a b HTTP/1.1",
        "G(T / HTTP/1.1",
        "GÄT / HTTP/1.1",
        "/ HTTP/1.1",
    ],
)
def test_section_3_a_line_that_is_not_method_target_version_is_400(line: str) -> None:
    assert refusal(head(start=line)) == 400


@pytest.mark.parametrize("version", ["HTTP/0.9", "HTTP/2.0", "HTTP/3.0", "HTTP/9.9"])
def test_section_2_3_another_major_version_is_505(version: str) -> None:
    assert refusal(head(start=f"GET / {version}")) == 505


@pytest.mark.parametrize(
    "version",
    [
        "HTTP/1", "HTTP/2", "HTTP/11", "HTTP/1.", "HTTP/.1", "HTTP/1.10", "HTTP/01.1", "HTTP/1.01",
        "HTTP/1,1", "HTTP/1.1.1", "HTTP/a.b", "HTTP/+1.1", "HTTP/\xb9.1", "http/1.1", "Http/1.1",
        "HTTPS/1.1", "HTTP 1.1", "HTTP1.1", "ICY/1.1", "1.1", "/1.1",
    ],
)  # fmt: skip
def test_section_2_3_a_malformed_version_is_400(version: str) -> None:
    assert refusal(head(start=f"GET / {version}")) == 400


@pytest.mark.parametrize("minor", range(2, 10))
def test_rfc9110_2_5_a_later_minor_version_is_served_as_1_1(minor: int) -> None:
    request = parse_one(head(start=f"GET / HTTP/1.{minor}"))
    assert (request.version, request.keep_alive) == ("HTTP/1.1", True)
    assert refusal(f"GET / HTTP/1.{minor}\r\n\r\n".encode()) == 400, "it needs a Host too"


def test_the_preface_of_http2_is_505() -> None:
    assert refusal(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == 505


# Section 3.2: the target


def test_rfc9110_9_3_6_connect_is_501() -> None:
    assert refusal(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n") == 501


def test_section_3_2_4_asterisk_is_for_options() -> None:
    request = parse_one(head(start="OPTIONS * HTTP/1.1"))
    assert (request.path, request.target) == ("*", "*")
    assert refusal(head(start="GET * HTTP/1.1")) == 400


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        ("http://other.example/a?b", "/a", "b", "other.example"),
        ("HTTP://other.example:8080/", "/", "", "other.example:8080"),
        ("https://[::1]:8080/a%2Db", "/a-b", "", "[::1]:8080"),
        ("http://other.example", "/", "", "other.example"),
        ("http://other.example?q", "/", "q", "other.example"),
    ],
)
def test_section_3_2_2_the_authority_of_an_absolute_form_replaces_host(
    target: str, path: str, query: str, host: str
) -> None:
    request = parse_one(head(start=f"GET {target} HTTP/1.1"))
    assert (request.path, request.query_string) == (path, query)
    assert request.headers.get_all("Host") == [host]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("target", ["http://b/", "https://b", "http://b:80/p?q", "*"])
def test_section_3_2_an_empty_host_with_an_absolute_form_is_400(target: str, version: str) -> None:
    method = "OPTIONS" if target == "*" else "GET"
    raw = f"{method} {target} HTTP/{version}\r\nHost:\r\n\r\n".encode()
    if target == "*":  # section 3.3: without an authority it means this server
        assert parse_one(raw).path == "*"
    else:
        assert refusal(raw) == 400


def test_section_3_2_2_an_absolute_form_gives_http_1_0_its_host() -> None:
    assert parse_one(b"GET http://h/ HTTP/1.0\r\n\r\n").headers["host"] == "h"


def test_section_3_2_2_an_absolute_form_still_needs_a_host_field_in_http_1_1() -> None:
    assert refusal(b"GET http://h/ HTTP/1.1\r\n\r\n") == 400


def test_rfc9110_4_2_3_an_absolute_form_without_path_is_the_asterisk_for_options() -> None:
    assert parse_one(head(start="OPTIONS http://h HTTP/1.1")).path == "*"


@pytest.mark.parametrize(
    "target",
    [
        "a/b",
        "ftp://h/",
        "http:///a",
        "http://",
        "http://user@h/",
        "http://h:port/",
        "http://h/a#f",
        "/a#f",
        "?a",
        "//h:1/\xe9",
        "/\xe4",
        "/?\xe4",
    ],
)
def test_section_3_2_a_target_of_no_form_is_400(target: str) -> None:
    assert refusal(head(start=f"GET {target} HTTP/1.1")) == 400


@pytest.mark.parametrize("path", ["/%", "/%4", "/%4g", "/%%41", "/a%zz", "/%u0041"])
def test_rfc3986_2_1_invalid_percent_encoding_is_400(path: str) -> None:
    assert refusal(head(start=f"GET {path} HTTP/1.1")) == 400


@pytest.mark.parametrize("path", ["/%00", "/a%0d%0aX", "/%7F", "/%ff", "/%c3"])
def test_an_encoded_control_or_a_path_that_is_not_utf8_is_400(path: str) -> None:
    assert refusal(head(start=f"GET {path} HTTP/1.1")) == 400


@pytest.mark.parametrize("path", ["/.", "/..", "/a/../b", "/a/./b", "/a/..", "/%2e%2E/a", "/a/%2e"])
def test_rfc3986_5_2_4_dot_segments_are_refused_not_normalised(path: str) -> None:
    assert refusal(head(start=f"GET {path} HTTP/1.1")) == 400


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/%E4%BD%A0", "/你"),
        ("/a.b/.c/...", "/a.b/.c/..."),
        ("//a//b", "//a//b"),
        ("/%2541", "/%41"),
        ("/a+b", "/a+b"),
        ("/a:@!$&'()*,;=|{}", "/a:@!$&'()*,;=|{}"),
    ],
)
def test_rfc3986_2_1_a_path_is_decoded_once_and_otherwise_left_alone(raw: str, path: str) -> None:
    assert parse_one(head(start=f"GET {raw} HTTP/1.1")).path == path


# Section 2.2: lines


@pytest.mark.parametrize("count", [0, 1, 2])
def test_section_2_2_up_to_two_empty_lines_before_a_request_are_skipped(count: int) -> None:
    assert [r.path for r in parse(b"\r\n" * count + GET + b"\r\n" * count + GET)] == [
        "/health",
        "/health",
    ]


def test_section_2_2_a_third_empty_line_is_400() -> None:
    assert refusal(b"\r\n\r\n\r\n") == 400


def test_an_empty_line_after_a_request_leaves_the_connection_idle() -> None:
    parser = RequestParser(Limits())
    parser.feed(GET + b"\r\n")
    assert parser.next_request() is not None
    assert parser.next_request() is None
    assert parser.state is ParserState.IDLE


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\rA: b\r\n\r\n",
        b"GET / HTTP/1.1\rHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        b"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\rGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\r\n\r\n",
    ],
)
def test_section_2_2_a_bare_cr_or_lf_in_the_head_is_400(data: bytes) -> None:
    assert refusal(data) == 400


@pytest.mark.parametrize("byte", [*range(9), 11, 12, *range(14, 32), 127])
def test_rfc9110_5_5_a_control_byte_in_the_head_is_400(byte: int) -> None:
    control = bytes([byte])
    assert refusal(b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % control) == 400
    assert refusal(b"GET / HTTP/1.1\r\nHost: x\r\nA: b%bc\r\n\r\n" % control) == 400


@pytest.mark.parametrize(
    "start", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\nH", b"GET / HTTP/1.1\rH"]
)
def test_what_cannot_become_a_head_is_refused_before_its_end(start: bytes) -> None:
    assert refusal(start) == 400


# Section 5: fields


def test_rfc9110_5_1_names_are_compared_without_case() -> None:
    headers = parse_one(head("Content-TYPE: a")).headers
    assert headers["content-type"] == headers.get("CONTENT-TYPE") == "a"
    assert "Content-type" in headers


def test_section_5_1_blanks_around_a_value_are_dropped_those_inside_kept() -> None:
    request = parse_one(head("A: \t b \t c\t ", "B:x", "C:", "D: \t "))
    assert [request.headers[name] for name in "abcd"] == ["b \t c", "x", "", ""]


def test_rfc9110_5_5_obs_text_comes_through_as_latin_1() -> None:
    assert parse_one(head("A: caf\xe9")).headers["a"] == "caf\xe9"


def test_rfc9110_5_3_lines_of_one_name_are_kept_and_joined_in_order() -> None:
    headers = parse_one(head("A: 1", "B: 2", "a: 3")).headers
    assert headers.get_all("A") == ["1", "3"]
    assert headers["A"] == "1, 3"


@pytest.mark.parametrize(
    "line", ["A : b", "A\t: b", ": b", "A", "A b: c", "A(: b", "\xe4: b", "A/b: c", "", " A: b"]
)
def test_section_5_1_a_line_that_is_not_token_colon_value_is_400(line: str) -> None:
    data = f"GET / HTTP/1.1\r\nHost: x\r\nOk: 1\r\n{line}\r\nEnd: 1\r\n\r\n".encode("latin-1")
    if line:
        assert refusal(data) == 400
    else:  # an empty line ends the head, and what follows is no request
        assert refusal(data + b"\r\n") == 400


@pytest.mark.parametrize("blank", [" ", "\t"])
def test_section_5_2_a_folded_line_is_400(blank: str) -> None:
    assert refusal(head("A: b", f"{blank}c")) == 400
    assert refusal(f"GET / HTTP/1.1\r\n{blank}Host: x\r\n\r\n".encode()) == 400


# Section 3.2: Host


def test_section_3_2_http_1_1_needs_a_host() -> None:
    assert refusal(b"GET / HTTP/1.1\r\n\r\n") == 400
    assert refusal(b"GET / HTTP/1.1\r\nA: b\r\n\r\n") == 400


def test_section_3_2_http_1_0_does_not() -> None:
    assert parse_one(b"GET / HTTP/1.0\r\n\r\n").version == "HTTP/1.0"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_section_3_2_a_second_host_is_400_even_the_same(version: str) -> None:
    assert refusal(f"GET / HTTP/{version}\r\nHost: x\r\nhost: x\r\n\r\n".encode()) == 400


@pytest.mark.parametrize(
    "host",
    [
        "a b", "a/b", "u@h", "a:b", "h:123456", "h:65536", "[::1", "[g]", "a:1:2", "%zz", "\xe4",
        ":80", ":", "[1]", "[::1]]", "[:::]", "[1:2:3:4:5:6:7:8:9]", "[1.2.3.4]", "[v1]", "[]",
    ],
)  # fmt: skip
def test_section_3_2_an_invalid_host_is_400(host: str) -> None:
    assert refusal(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")) == 400


@pytest.mark.parametrize(
    "host",
    [
        "", "localhost", "127.0.0.1:8080", "[::1]:80", "[fe80::1]", "a_b.c", "a,b", "h:", "%41",
        "A", "h:65535", "[::ffff:1.2.3.4]", "[v1.a]", "[V1.a]",
    ],
)  # fmt: skip
def test_section_3_2_valid_hosts_are_taken(host: str) -> None:
    request = parse_one(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert request.headers["host"] == host


# Section 6: body length


def test_section_6_2_content_length_delimits_the_body() -> None:
    first, second = parse(post(b"hello" + GET, "Content-Length: 5"))
    assert (first.body, second.path) == (b"hello", "/health")


def test_section_6_3_without_a_length_there_is_no_body() -> None:
    first, second = parse(head(start="POST /p HTTP/1.1") + GET)
    assert (first.body, second.path) == (b"", "/health")


@pytest.mark.parametrize("length", ["0", "000", "0005", "0" * 30 + "5"])
def test_rfc9110_8_6_leading_zeros_are_digits(length: str) -> None:
    body = b"hello"[: int(length)]
    assert parse_one(post(body, f"Content-Length: {length}")).body == body


@pytest.mark.parametrize(
    "length",
    ["+1", "-1", "1_0", "0x1", "1.0", "1e1", "", "a", "1 1", "1,1", "1, 1", "\xb2", "\xb9"],
)
def test_rfc9110_8_6_a_length_that_is_not_digits_only_is_400(length: str) -> None:
    assert refusal(post(b"1" * 20, f"Content-Length: {length}")) == 400


def test_section_6_3_a_repeated_length_is_400_even_the_same() -> None:
    assert refusal(post(b"1", "Content-Length: 1", "Content-Length: 1")) == 400


@pytest.mark.parametrize("length", ["11", "9" * 30, "9" * 5000])
def test_a_length_past_the_limit_is_413_before_the_body_is_read(length: str) -> None:
    assert refusal(post(b"", f"Content-Length: {length}"), Limits(body=10)) == 413


def test_a_body_as_long_as_the_limit_is_taken() -> None:
    limits = Limits(body=10)
    assert parse_one(post(b"x" * 10, "Content-Length: 10"), limits).body == b"x" * 10
    assert parse_one(chunked(b"a\r\n0123456789\r\n0\r\n\r\n"), limits).body == b"0123456789"


def test_section_6_1_transfer_encoding_with_content_length_is_400() -> None:
    assert refusal(post(b"", "Transfer-Encoding: chunked", "Content-Length: 5")) == 400
    assert refusal(post(b"", "Content-Length: 5", "Transfer-Encoding: chunked")) == 400


def test_section_6_1_transfer_encoding_in_http_1_0_is_400() -> None:
    assert refusal(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n") == 400


@pytest.mark.parametrize(
    "coding",
    [
        "gzip, chunked",
        "gzip,chunked",
        "x;a=b, Chunked",
        'x ; a = "b\\"" \t,\tchunked',
        "a, b, chunked",
    ],
)
def test_section_6_1_another_transfer_coding_is_501(coding: str) -> None:
    assert refusal(post(b"0\r\n\r\n", f"Transfer-Encoding: {coding}")) == 501
    lines = [f"Transfer-Encoding: {each}" for each in coding.split(",")]
    assert refusal(post(b"0\r\n\r\n", *lines)) == 501


@pytest.mark.parametrize(
    "coding", ["gzip", "identity", "xchunked", "chunkedx", "chunked, gzip", "chunked, identity"]
)
def test_section_6_3_a_body_that_does_not_end_in_chunked_is_400(coding: str) -> None:
    assert refusal(post(b"0\r\n\r\n", f"Transfer-Encoding: {coding}")) == 400


@pytest.mark.parametrize(
    "coding",
    [
        "", ",", "chunked,", ",chunked", "chunked, chunked", "chunked, gzip, chunked",
        "chunked;a=b", "chunked;a", "chunked;", "gzip;q, chunked", '"chunked"', "chu nked",
        "gzip chunked", "chunked\xa0", "[chunked]", "gzip;a=, chunked", 'gzip;a="b, chunked',
    ],
)  # fmt: skip
def test_section_7_a_malformed_list_or_chunked_twice_or_with_parameters_is_400(coding: str) -> None:
    assert refusal(post(b"0\r\n\r\n", f"Transfer-Encoding: {coding}")) == 400


def test_section_6_1_two_transfer_encoding_lines_are_one_list() -> None:
    lines = ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked")
    assert refusal(post(b"0\r\n\r\n", *lines)) == 400


def test_section_7_names_of_codings_have_no_case() -> None:
    assert parse_one(post(b"1\r\na\r\n0\r\n\r\n", "Transfer-Encoding: Chunked")).body == b"a"


# Section 7.1: chunked


def test_section_7_1_chunks_are_joined() -> None:
    request = parse_one(chunked(b"5\r\nhello\r\n00A\r\n, world...\r\n0\r\n\r\n"))
    assert request.body == b"hello, world..."


def test_section_7_1_chunk_data_may_hold_anything() -> None:
    assert parse_one(chunked(b"6\r\n\r\n0\r\n\r\r\n0\r\n\r\n")).body == b"\r\n0\r\n\r"


def test_what_follows_a_chunked_body_is_the_next_request() -> None:
    first, second = parse(chunked(b"1\r\na\r\n0\r\n\r\n") + GET)
    assert (first.body, second.path) == (b"a", "/health")


@pytest.mark.parametrize(
    "size",
    [
        "0000000000000003", "3", "0003", "3;a", "3 ;a=b", '3;a="b;c"', "3;a;b", "3\t;\ta = b ; c",
        '3;a=""', '3;a="\\"\xe4\\\\"', "3;a=b;c=d",
    ],
)  # fmt: skip
def test_section_7_1_1_a_size_is_1_to_16_hex_digits_and_extensions_are_ignored(size: str) -> None:
    assert parse_one(chunked(f"{size}\r\nabc\r\n0\r\n\r\n".encode("latin-1"))).body == b"abc"


@pytest.mark.parametrize(
    "size",
    [
        "", "00000000000000003", "g", "0x3", "+3", "-3", " 3", "3 ", "3_0", "3 a", ";a", "\xb3",
        "3;", "3; ", "3;;a", "3;a;", "3;=b", "3;a=", "3;a b", "3;a=b c", '3;a="b', '3;a=b"c"',
        '3;"a"', "3;a ", "3;a=b ", "3;[a]", "3;a={b}", '3;a="b"c', "3;\xe4", "3,a",
    ],
)  # fmt: skip
def test_section_7_1_another_size_line_is_400(size: str) -> None:
    assert refusal(chunked(f"{size}\r\nabc\r\n0\r\n\r\n".encode("latin-1"))) == 400


@pytest.mark.parametrize(
    "body",
    [
        b"3\nabc\r\n0\r\n\r\n",
        b"3\rabc\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabc\r0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3;\x00\r\nabc\r\n0\r\n\r\n",
        b"3;a\nb\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\n\r\n",
        b"3\r\nabc\r\n0\r\n\n",
    ],
)
def test_section_7_1_each_line_of_a_chunk_ends_in_crlf(body: bytes) -> None:
    assert refusal(chunked(body)) == 400


@pytest.mark.parametrize("body", [b"3\nab", b"3;\x00", b"1\r\nab"])
def test_what_cannot_become_a_chunk_is_refused_before_its_end(body: bytes) -> None:
    assert refusal(chunked(body)) == 400


def test_chunks_past_the_limit_are_413_as_soon_as_their_size_is_read() -> None:
    limits = Limits(body=10)
    assert refusal(chunked(b"b\r\n"), limits) == 413
    assert refusal(chunked(b"5\r\nhello\r\n6\r\n"), limits) == 413
    assert refusal(chunked(b"FFFFFFFFFFFFFFFF\r\n"), limits) == 413


def test_section_7_1_1_a_long_extension_is_400() -> None:
    limits = Limits(chunk_line=32)
    assert parse_one(chunked(b"1;%b\r\na\r\n0\r\n\r\n" % (b"x" * 30)), limits).body == b"a"
    assert refusal(chunked(b"1;%b\r\na\r\n0\r\n\r\n" % (b"x" * 31)), limits) == 400
    assert refusal(chunked(b"1;" + b"x" * 40), limits) == 400


def test_section_7_1_1_extensions_that_outweigh_the_body_are_400() -> None:
    assert refusal(chunked(b"1;%b\r\na\r\n" % (b"x" * 200) * 100)) == 400


def test_section_7_1_many_small_chunks_are_400_and_what_a_client_streams_is_not() -> None:
    def body_in_chunks_of(size: int, count: int) -> bytes:
        return chunked(b"%x\r\n%b\r\n" % (size, b"x" * size) * count + b"0\r\n\r\n")

    assert refusal(body_in_chunks_of(1, 40_000)) == 400
    assert len(parse_one(body_in_chunks_of(1, 30_000)).body) == 30_000
    assert len(parse_one(body_in_chunks_of(8, 36_000)).body) == 288_000
    assert len(parse_one(body_in_chunks_of(64, 100_000)).body) == 6_400_000


def test_a_large_body_is_not_kept_for_the_sake_of_what_is_pipelined_behind_it() -> None:
    parser = RequestParser(Limits())
    big = b"x" * (4 << 20)
    for part in (post(b"", f"Content-Length: {len(big)}"), big, GET[:1]):
        parser.feed(part)
    request = parser.next_request()
    assert request is not None
    assert request.body == big
    assert sys.getsizeof(parser._buffer) < 1000
    parser.feed(GET[1:])
    second = parser.next_request()
    assert second is not None
    assert second.path == "/health"


def test_section_7_1_2_trailers_are_dropped() -> None:
    request = parse_one(chunked(b"1\r\na\r\n0\r\nDigest: x\r\nContent-Length: 7\r\n\r\n"))
    assert request.body == b"a"
    assert "digest" not in request.headers
    assert "content-length" not in request.headers


@pytest.mark.parametrize("trailer", [b"A b: c", b" A: b", b"A", b"A: \x00", b"A: b\nc", b"A: \r"])
def test_section_7_1_2_malformed_trailers_are_400(trailer: bytes) -> None:
    assert refusal(chunked(b"0\r\n%b\r\n\r\n" % trailer)) == 400


def test_trailers_are_bounded_with_431() -> None:
    limits = Limits(trailers=32)
    assert parse(chunked(b"0\r\nA: %b\r\n\r\n" % (b"x" * 25)), limits)
    assert refusal(chunked(b"0\r\nA: %b\r\n\r\n" % (b"x" * 26)), limits) == 431
    assert refusal(chunked(b"0\r\nA: " + b"x" * 40), limits) == 431


# Limits of the head


def test_section_3_a_long_request_line_is_414() -> None:
    limits = Limits(request_line=64)
    line = b"GET /%b HTTP/1.1"
    rest = b"\r\nHost: x\r\n\r\n"
    assert parse(line % (b"a" * (64 - 14)) + rest, limits)
    assert refusal(line % (b"a" * (65 - 14)) + rest, limits) == 414
    assert refusal(b"GET /" + b"a" * 60, limits) == 414


def test_rfc6585_5_a_long_head_is_431() -> None:
    limits = Limits(head=128)
    start = b"GET / HTTP/1.1\r\nHost: x\r\nA: "
    room = 128 - len(start) - len(b"\r\n\r\n")
    assert parse(start + b"a" * room + b"\r\n\r\n", limits)
    assert refusal(start + b"a" * (room + 1) + b"\r\n\r\n", limits) == 431
    assert refusal(start + b"a" * 128, limits) == 431


def test_rfc6585_5_too_many_fields_are_431() -> None:
    assert len(parse_one(head(*["A: b"] * 99)).headers) == 100
    assert refusal(head(*["A: b"] * 100)) == 431


def test_a_head_remembered_under_wide_limits_is_refused_under_narrow_ones() -> None:
    data = head(*["A: b"] * 9)
    assert parse(data)
    assert refusal(data, Limits(fields=9)) == 431
    assert refusal(data, Limits(head=32)) == 431
    body = post(b"hello", "Content-Length: 5")
    assert parse(body)
    assert refusal(body, Limits(body=4)) == 413


def test_what_stands_first_is_reported() -> None:
    limits = Limits(request_line=20, head=64)
    assert refusal(b"GET /\x00" + b"a" * 100, limits) == 400
    assert refusal(b"GET /" + b"a" * 20 + b"\x00", limits) == 414
    assert refusal(b"GET / HTTP/1.1\r\n" + b"a" * 50 + b"\x00", limits) == 431
    assert refusal(b"GET / HTTP/1.1\r\n" + b"a" * 40 + b"\x00" + b"a" * 40, limits) == 400


# RFC 9110 section 10.1.1: Expect


def test_rfc9110_10_1_1_a_waiting_client_is_told_once_to_go_on() -> None:
    parser = RequestParser(Limits())
    parser.feed(post(b"", "Content-Length: 5", "Expect: 100-Continue"))
    assert parser.next_request() is None
    seen = [parser.wants_continue]
    parser.continue_sent()
    seen.append(parser.wants_continue)
    assert seen == [True, False]
    parser.feed(b"hello")
    request = parser.next_request()
    assert request is not None
    assert request.body == b"hello"


@pytest.mark.parametrize("body", [b"h", b"hello"])
def test_rfc9110_10_1_1_a_client_that_does_not_wait_is_not_told(body: bytes) -> None:
    parser = RequestParser(Limits())
    parser.feed(post(body, "Content-Length: 5", "Expect: 100-continue"))
    parser.next_request()
    assert not parser.wants_continue


def test_rfc9110_10_1_1_nor_one_without_a_body() -> None:
    parser = RequestParser(Limits())
    parser.feed(post(b"", "Expect: 100-continue"))
    assert parser.next_request() is not None
    assert not parser.wants_continue


def test_rfc9110_10_1_1_nor_one_that_speaks_http_1_0() -> None:
    parser = RequestParser(Limits())
    parser.feed(b"POST / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
    assert parser.next_request() is None
    assert not parser.wants_continue


@pytest.mark.parametrize(
    "value", ["200-ok", "100-continue, x", "x, 100-continue", "100-continue=1"]
)
def test_rfc9110_10_1_1_another_expectation_is_417(value: str) -> None:
    assert refusal(post(b"a", "Content-Length: 1", f"Expect: {value}")) == 417


def test_a_body_too_large_is_413_rather_than_asked_for() -> None:
    lines = ("Content-Length: 11", "Expect: 100-continue")
    assert refusal(post(b"", *lines), Limits(body=10)) == 413


# Section 9.3: persistence


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [
        ("1.1", None, True),
        ("1.1", "keep-alive", True),
        ("1.1", "close", False),
        ("1.1", "Close", False),
        ("1.1", "upgrade, close", False),
        ("1.1", "closed", True),
        ("1.0", None, False),
        ("1.0", "Keep-Alive", True),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_section_9_3_keep_alive(version: str, connection: str | None, keep: bool) -> None:
    line = f"Connection: {connection}\r\n" if connection else ""
    data = f"GET / HTTP/{version}\r\nHost: x\r\n{line}\r\n".encode()
    assert parse_one(data).keep_alive is keep


def test_section_9_3_connection_options_may_stand_in_several_lines() -> None:
    assert parse_one(head("Connection: x", "Connection: close")).keep_alive is False


def test_section_9_3_2_pipelined_requests_come_out_in_order() -> None:
    data = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d" % (i, i) for i in range(9)
    )
    assert [(r.path, r.body) for r in parse(data)] == [(f"/{i}", b"%d" % i) for i in range(9)]


# The state


def test_the_state_tells_what_is_awaited() -> None:
    parser = RequestParser(Limits())
    seen = []
    for part in (b"", b"POST / HT", b"TP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n", b"a"):
        parser.feed(part)
        assert parser.next_request() is None
        seen.append(parser.state)
    assert seen == [
        ParserState.IDLE,
        ParserState.HEAD,
        ParserState.BODY,
        ParserState.BODY,
    ]
    parser.feed(b"b" + GET)
    assert parser.next_request() is not None
    assert parser.state is ParserState.HEAD
    assert parser.next_request() is not None
    assert (parser.state, parser.buffered) == (ParserState.IDLE, 0)


def test_section_8_a_body_cut_off_is_awaited() -> None:
    for data in (chunked(b""), chunked(b"1\r\na\r\n0\r\n"), post(b"a", "Content-Length: 2")):
        parser = RequestParser(Limits())
        parser.feed(data)
        assert parser.next_request() is None
        assert parser.state is ParserState.BODY


def test_an_error_is_for_ever() -> None:
    parser = RequestParser(Limits())
    parser.feed(b"GET /\n")
    with pytest.raises(ProtocolError) as first:
        parser.next_request()
    parser.feed(GET)
    with pytest.raises(ProtocolError) as second:
        parser.next_request()
    assert first.value is second.value


def test_a_request_does_not_change_when_the_receive_buffer_does() -> None:
    data = bytearray(post(b"hello", "Content-Length: 5"))
    parser = RequestParser(Limits())
    parser.feed(memoryview(data)[:-2])
    data[:-2] = b"x" * (len(data) - 2)
    parser.feed(memoryview(data)[-2:])
    request = parser.next_request()
    assert request is not None
    assert (request.path, request.body) == ("/p", b"hello")


def test_equal_heads_share_what_cannot_change_and_nothing_else() -> None:
    first, second = parse(GET * 2)
    assert first.headers is second.headers
    first.path_params["a"] = "b"
    first.context["c"] = 1
    assert (second.path_params, second.context) == ({}, {})


def test_remembered_heads_are_bounded() -> None:
    limits = Limits(fields=99)
    heads = head_module.remembered_heads(limits)
    for index in range(head_module.MAX_REMEMBERED * 2 + 1):
        parse_one(head(f"A: {index}"), limits)
        assert len(heads) <= head_module.MAX_REMEMBERED
    assert len(heads) > 0
    size = len(heads)
    parse_one(head("A: " + "b" * head_module.MAX_REMEMBERED_SIZE), limits)
    assert len(heads) == size


@pytest.mark.parametrize(
    "name",
    ["Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key", "x-api-key", "API-Key"],
)
def test_a_head_with_a_secret_is_not_remembered(name: str) -> None:
    limits = Limits(fields=98)
    parse_one(head(f"{name}: secret"), limits)
    assert not head_module.remembered_heads(limits)


@pytest.mark.parametrize(
    "data",
    [
        head("A: " + "b" * 20_000),
        head(start="GET /" + "a" * 8000 + " HTTP/1.1"),
        chunked(b"0\r\nA: " + b"b" * 8000 + b"\r\n\r\n"),
    ],
    ids=["field", "request line", "trailer"],
)
def test_each_byte_is_looked_at_once_however_slowly_they_come(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    def counting(
        buffer: bytes, scan: int, stop: int, too_long: list[tuple[int, ProtocolError]]
    ) -> None:
        nonlocal looked
        looked += stop - scan
        head_module.check_section(buffer, scan, stop, too_long)

    monkeypatch.setattr(parser_module, "check_section", counting)
    parser = RequestParser(Limits())
    requests = 0
    for index in range(len(data)):
        parser.feed(data[index : index + 1])
        requests += parser.next_request() is not None
    assert requests == 1
    assert len(data) / 2 < looked <= 2 * len(data)


LONG = 2_000_000  # characters; what looks at each once takes milliseconds, n² hours


@pytest.mark.parametrize(
    ("request_line", "field"),
    [
        ("GET / HTTP/1.1", "'A: a' + ' ' * LONG + 'b'"),
        ("GET / HTTP/1.1", "'A: b' + ' ' * LONG"),
        ("GET / HTTP/1.1", "'a' * LONG"),
        ("GET / HTTP/1.1", "'a' * LONG + ' : b'"),
        ("GET / HTTP/1.1", "'Connection: ' + ',' * LONG"),
        ("GET / HTTP/1.1", "'Host: ' + 'a' * LONG + '!%'"),
        ("GET / HTTP/1.1", "'Content-Length: ' + '0' * LONG"),
        ("GET http://' + 'a' * LONG + '\\x80 HTTP/1.1", "'A: b'"),
        ("GET http://x/' + 'a' * LONG + '\\x80 HTTP/1.1", "'A: b'"),
        ("GET /' + '?' * LONG + '\\x80 HTTP/1.1", "'A: b'"),
        ("GET /' + '/.a' * (LONG // 3) + ' HTTP/1.1", "'A: b'"),
        ("GET /' + '%41' * (LONG // 3) + ' HTTP/1.1", "'A: b'"),
        ("GET' * LONG + ' / HTTP/1.1", "'A: b'"),
    ],
)
def test_a_long_head_is_parsed_in_linear_time(request_line: str, field: str) -> None:
    # In a process of its own: an expression that backtracks lets no other thread run, so that
    # nothing inside this one could end it.
    program = f"""
from cllm.http import Limits, ProtocolError, RequestParser
LONG = {LONG}
parser = RequestParser(Limits(request_line=4 * LONG, head=4 * LONG))
parser.feed(('{request_line}\\r\\nHost: x\\r\\n' + {field} + '\\r\\n\\r\\n').encode('latin-1'))
try:
    parser.next_request()
except ProtocolError:
    pass
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_known_gives_the_request_that_feeding_would_give() -> None:
    data = head("X-Repeated: yes")
    fed = parse_one(data)
    parser = RequestParser(Limits())
    assert parser.known(data) == fed
    assert parser.state is ParserState.IDLE
    assert parser.known(data) == fed
    parser.feed(data)
    assert parser.next_request() == fed


@pytest.mark.parametrize(
    "data",
    [
        head("X-Never-Seen: before"),
        head("Cookie: secret"),
        post(b"{}", "Content-Length: 2"),
        head() + head(),
        head()[:-1],
    ],
)
def test_known_leaves_what_is_not_one_remembered_head_without_a_body(data: bytes) -> None:
    parse_one(head())
    assert RequestParser(Limits()).known(data) is None


def test_known_does_not_take_a_head_in_the_middle_of_another_request() -> None:
    inner = head()
    parse_one(inner)
    parser = RequestParser(Limits())
    parser.feed(inner[:5])
    assert parser.known(inner) is None
    body = RequestParser(Limits())
    body.feed(post(inner, f"Content-Length: {len(inner)}")[: -len(inner)])
    assert body.next_request() is None
    assert body.known(inner) is None
    body.feed(inner)
    request = body.next_request()
    assert request is not None
    assert request.body == inner


def test_known_gives_nothing_after_an_error() -> None:
    good = head()
    parse_one(good)
    parser = RequestParser(Limits())
    parser.feed(b"\0")
    with pytest.raises(ProtocolError):
        parser.next_request()
    assert parser.known(good) is None
