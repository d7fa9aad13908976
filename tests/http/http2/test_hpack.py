"""Header compression: the examples of RFC 7541, and the package `hpack` as a second opinion."""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import given
from hypothesis import strategies as st

from cllm.http.http2 import huffman
from cllm.http.http2.hpack import (
    STATIC_TABLE,
    TABLE_SIZE,
    CompressionError,
    Decoder,
    HeaderListTooLarge,
    encode_field,
    encode_integer,
    encode_status,
)


def decoder(size: int = 1 << 16, fields: int = 1000) -> Decoder:
    return Decoder(size, fields)


def decoded(block: str) -> list[tuple[str, str]]:
    return decoder().decode(bytes.fromhex(block))


# Appendix A and B


def test_the_static_table_is_that_of_appendix_a() -> None:
    theirs = [(name.decode(), value.decode()) for name, value in HeaderTable.STATIC_TABLE]
    assert list(STATIC_TABLE[1:]) == theirs


def test_the_huffman_code_is_that_of_appendix_b() -> None:
    codes = {symbol: code for code, symbol in huffman._codes().items()}
    theirs = list(zip(REQUEST_CODES_LENGTH, REQUEST_CODES, strict=True))
    assert [codes[symbol] for symbol in range(256)] == theirs[:256]


# Appendix C

GET = [(":method", "GET"), (":scheme", "http"), (":path", "/")]
FIRST = [*GET, (":authority", "www.example.com")]
SECOND = [*FIRST, ("cache-control", "no-cache")]
THIRD = [
    (":method", "GET"), (":scheme", "https"), (":path", "/index.html"),
    (":authority", "www.example.com"), ("custom-key", "custom-value"),
]  # fmt: skip
DATE = "Mon, 21 Oct 2013 20:13:2"
URL = "https://www.example.com"
ANSWER = [(":status", "302"), ("cache-control", "private"), ("date", DATE + "1 GMT"),
          ("location", URL)]  # fmt: skip
COOKIE = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
LAST = [(":status", "200"), ("cache-control", "private"), ("date", DATE + "2 GMT"),
        ("location", URL), ("content-encoding", "gzip"), ("set-cookie", COOKIE)]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "mask", "encoded"), [(10, 0x1F, "0a"), (1337, 0x1F, "1f9a0a"), (42, 0xFF, "2a")]
)
def test_c_1_integers(value: int, mask: int, encoded: str) -> None:
    assert encode_integer(value, mask).hex() == encoded


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", ("custom-key", "custom-header")),
        ("040c2f73616d706c652f70617468", (":path", "/sample/path")),
        ("100870617373776f726406736563726574", ("password", "secret")),
        ("82", (":method", "GET")),
    ],
)
def test_c_2_fields(block: str, field: tuple[str, str]) -> None:
    assert decoded(block) == [field]


REQUESTS = [
    pytest.param(
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        id="C.3 without Huffman",
    ),
    pytest.param(
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        id="C.4 with Huffman",
    ),
]


@pytest.mark.parametrize(("first", "second", "third"), REQUESTS)
def test_c_3_and_c_4_requests(first: str, second: str, third: str) -> None:
    reader = decoder()
    assert reader.decode(bytes.fromhex(first)) == FIRST
    assert reader.decode(bytes.fromhex(second)) == SECOND
    assert reader.decode(bytes.fromhex(third)) == THIRD


RESPONSES = [
    pytest.param(
        "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
        "6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
        "4803333037c1c0bf",
        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f"
        "3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076"
        "657273696f6e3d31",
        id="C.5 without Huffman",
    ),
    pytest.param(
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad1718"
        "63c78f0b97c8e9ae82ae43d3",
        "4883640effc1c0bf",
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335"
        "dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        id="C.6 with Huffman",
    ),
]


@pytest.mark.parametrize(("first", "second", "third"), RESPONSES)
def test_c_5_and_c_6_responses_that_evict(first: str, second: str, third: str) -> None:
    reader = decoder()
    assert reader.decode(b"\x3f\xe1\x01") == []  # a table of 256 bytes, as the examples have
    assert reader.decode(bytes.fromhex(first)) == ANSWER
    changed = [(":status", "307"), *ANSWER[1:]]
    assert reader.decode(bytes.fromhex(second)) == changed
    assert reader.decode(bytes.fromhex(third)) == LAST


# Blocks that are refused

BAD = [
    ("2.3.3 index 0", "80"),
    ("2.3.3 an index past both tables", "be"),
    ("2.3.3 a literal's name past both tables", "7f00"),
    ("4.2 a table larger than the setting", "3fe23f"),
    ("4.2 a size update after a field", "8220"),
    ("5.1 an integer that does not end", "ff"),
    ("5.1 an integer of too many bytes", "ffffffffffff00"),
    ("5.2 a string longer than the block", "000a61"),
    ("5.2 a string's length is missing", "00"),
    ("5.2 a value is missing", "0001611"[:6]),
    ("5.2 padding of more than 7 bits", "0082a7ff00"),
    ("5.2 padding that is not ones", "0081a000"),
    ("5.2 EOS in a string", "0084ffffffff00"),
]


@pytest.mark.parametrize("block", [pytest.param(block, id=name) for name, block in BAD])
def test_a_bad_block_is_refused(block: str) -> None:
    with pytest.raises(CompressionError):
        decoded(block)


def test_the_table_may_have_its_whole_size_again() -> None:
    reader = decoder()
    reader.decode(b"\x20")
    reader.decode(bytes((0x3F,)) + encode_integer(TABLE_SIZE, 0x1F)[1:])
    reader.decode(bytes.fromhex(REQUESTS[0].values[0]))  # type: ignore[arg-type]
    assert reader.decode(b"\xbe") == [(":authority", "www.example.com")]


def test_an_entry_larger_than_the_table_empties_it() -> None:
    reader = decoder()
    reader.decode(b"\x40\x01a\x01b")
    assert reader.decode(b"\xbe") == [("a", "b")]
    reader.decode(b"\x40\x01a" + encode_integer(TABLE_SIZE, 0x7F) + b"x" * TABLE_SIZE)
    with pytest.raises(CompressionError):
        reader.decode(b"\xbe")


def test_a_list_that_is_too_large_is_decoded_to_its_end() -> None:
    reader = decoder(size=100)
    with pytest.raises(HeaderListTooLarge):
        reader.decode(b"\x40\x01a\x01b" * 4)  # 34 bytes each
    assert reader.decode(b"\xbe\xc1") == [("a", "b")] * 2
    with pytest.raises(HeaderListTooLarge):
        decoder(fields=3).decode(b"\x82" * 4)


def test_a_bomb_of_indices_is_not_decoded_to_its_end() -> None:
    reader = decoder(size=32 * 1024)
    value = b"x" * 4000
    reader.decode(b"\x40\x01a" + encode_integer(len(value), 0x7F) + value)
    with pytest.raises(HeaderListTooLarge):
        reader.decode(b"\xbe" * 32)
    with pytest.raises(CompressionError):  # 32 kB that stand for 130 MB
        reader.decode(b"\xbe" * 32_000)


def test_only_a_block_that_adds_nothing_leaves_the_table_unchanged() -> None:
    reader = decoder()
    for block, changes in ((b"\x82\x86", 0), (b"\x00\x01a\x01b", 0), (b"\x10\x01a\x01b", 0),
                           (b"\x40\x01a\x01b", 1), (b"\xbe", 1), (b"\x20", 2)):  # fmt: skip
        reader.decode(block)
        assert reader.changes == changes


# Encoding


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key", "set-cookie"])
def test_secrets_are_sent_as_never_indexed(name: str) -> None:
    assert encode_field(name, "a")[0] & 0xF0 == 0x10
    assert encode_field("server", "a")[0] & 0xF0 == 0


@pytest.mark.parametrize("status", [100, 200, 204, 307, 404, 429, 500, 503])
def test_a_status_is_read_by_another_decoder(status: int) -> None:
    ((name, value),) = hpack.Decoder().decode(encode_status(status))
    assert (str(name), str(value)) == (":status", str(status))


# Second opinions

NAMES = st.sampled_from([name for name, _ in STATIC_TABLE[1:]]) | st.text("abcxyz-_09", min_size=1)
VALUES = st.text(st.characters(max_codepoint=255), max_size=300)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=20)


@given(FIELDS)
def test_what_is_encoded_here_another_decoder_reads(fields: list[tuple[str, str]]) -> None:
    block = b"".join(encode_field(name, value) for name, value in fields)
    theirs = hpack.Decoder().decode(block, raw=True)
    assert [(n.decode("latin-1"), v.decode("latin-1")) for n, v in theirs] == fields
    assert decoder().decode(block) == fields


@given(
    st.lists(st.tuples(FIELDS, st.booleans(), st.none() | st.integers(0, TABLE_SIZE)), max_size=5)
)
def test_what_another_encoder_writes_is_read_here(
    lists: list[tuple[list[tuple[str, str]], bool, int | None]],
) -> None:
    encoder, reader = hpack.Encoder(), decoder()
    for fields, coded, size in lists:
        if size is not None:
            encoder.header_table_size = size
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        assert reader.decode(encoder.encode(raw, huffman=coded)) == fields


@given(st.binary(max_size=200))
def test_any_bytes_are_a_block_or_an_error(block: bytes) -> None:
    """The other decoder agrees, except on limits that are this one's own."""
    try:
        ours: object = decoder().decode(block)
    except CompressionError:
        ours = None
    try:
        raw = hpack.Decoder(1 << 20).decode(block, raw=True)
        theirs: object = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in raw]
    except hpack.HPACKError:
        theirs = None
    if ours is not None or theirs is None:
        assert ours == theirs
