"""HPACK, the compression of header fields (RFC 7541): a full decoder, an encoder without state.

The encoder uses the static table and literals without indexing, so a response's fields are the same
bytes on every connection and can be remembered. Fields are text decoded as latin-1.
"""

from __future__ import annotations

from collections.abc import Iterable

from cllm.http.head import SECRETS
from cllm.http.http2 import huffman

Field = tuple[str, str]

TABLE_SIZE = 4096  # bytes; SETTINGS_HEADER_TABLE_SIZE's initial value, which this server keeps
ENTRY_OVERHEAD = 32  # bytes; section 4.1

# A list that is too large is decoded to its end, for the table. One of this many times the limit is
# an attack, and ends the connection: 32 KiB of indices can stand for 130 MiB, and take 10 ms.
BOMB = 4

# Longer integers only serve to exhaust the decoder: no size or index here needs 28 bits.
MAX_INTEGER_BYTES = 4

# Appendix A, by index from 1. Names without a value:
_PLAIN = """
    accept-language accept-ranges accept access-control-allow-origin age allow authorization
    cache-control content-disposition content-encoding content-language content-length
    content-location content-range content-type cookie date etag expect expires from host if-match
    if-modified-since if-none-match if-range if-unmodified-since last-modified link location
    max-forwards proxy-authenticate proxy-authorization range referer refresh retry-after server
    set-cookie strict-transport-security transfer-encoding user-agent vary via www-authenticate
"""
STATIC_TABLE: tuple[Field, ...] = (
    ("", ""), (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"),
    (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"),
    *((":status", status) for status in ("200", "204", "206", "304", "400", "404", "500")),
    ("accept-charset", ""), ("accept-encoding", "gzip, deflate"),
    *((name, "") for name in _PLAIN.split()),
)  # fmt: skip
STATIC_SIZE = len(STATIC_TABLE)  # the index of the newest dynamic entry

# Sent as never indexed, so that a proxy on the way does not put them into its table (section 7.1.3)
NEVER_INDEXED = frozenset((*SECRETS, "set-cookie"))


class CompressionError(ValueError):
    """The block cannot be decoded: the connection has no common table any more."""


class HeaderListTooLarge(ValueError):  # noqa: N818 - named after its setting
    """The fields exceed the limit. The whole block was decoded, so the table is still right.

    fields: those within the limit.
    """

    def __init__(self, text: str, fields: list[Field]) -> None:
        super().__init__(text)
        self.fields = fields


class Decoder:
    """The decoding side of one connection.

    changes: counts changes of the dynamic table. While it stays, the same block has the same
    fields.
    """

    __slots__ = ("_entries", "_max_fields", "_max_size", "_size", "_table_size", "changes")

    def __init__(self, max_size: int, max_fields: int) -> None:
        """max_size: of a header list as SETTINGS_MAX_HEADER_LIST_SIZE counts it, in bytes."""
        self._max_size = max_size
        self._max_fields = max_fields
        self._entries: list[Field] = []  # the newest last
        self._size = 0
        self._table_size = TABLE_SIZE
        self.changes = 0

    def decode(self, block: bytes) -> list[Field]:
        """The fields of a block. Raises CompressionError, HeaderListTooLarge."""
        try:
            return self._decode(block)
        except IndexError:
            raise CompressionError("a header block is truncated") from None

    def _decode(self, block: bytes) -> list[Field]:
        fields: list[Field] = []
        size = position = 0
        while position < len(block):
            byte = block[position]
            if byte & 0x80:  # section 6.1: indexed
                index, position = _integer(block, position, 0x7F)
                field = self._entry(index)
            elif byte & 0xE0 == 0x20:  # section 6.3: table size update
                if fields or size:
                    raise CompressionError("a table size update follows a field")
                most, position = _integer(block, position, 0x1F)
                self._resize(most)
                continue
            else:  # section 6.2: a literal that is indexed, not indexed, or never indexed
                indexing = byte & 0x40
                index, position = _integer(block, position, 0x3F if indexing else 0x0F)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, position = _string(block, position)
                value, position = _string(block, position)
                field = (name, value)
                if indexing:
                    self._add(field)
            size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
            if size > BOMB * self._max_size:
                raise CompressionError(f"a block stands for more than {size} bytes of fields")
            if size <= self._max_size and len(fields) <= self._max_fields:
                fields.append(field)
        if size > self._max_size or len(fields) > self._max_fields:
            raise HeaderListTooLarge(
                f"the fields exceed {self._max_size} bytes or {self._max_fields} fields", fields
            )
        return fields

    def _entry(self, index: int) -> Field:
        if 0 < index < STATIC_SIZE:
            return STATIC_TABLE[index]
        at = index - STATIC_SIZE
        if not 0 <= at < len(self._entries):
            raise CompressionError(f"a header block has index {index}, which no table has")
        return self._entries[-1 - at]

    def _add(self, field: Field) -> None:
        """Section 4.4: an entry larger than the table empties it."""
        self.changes += 1
        self._entries.append(field)
        self._size += _entry_size(field)
        self._evict()

    def _resize(self, most: int) -> None:
        if most > TABLE_SIZE:
            raise CompressionError(f"a table size of {most} exceeds the setting, {TABLE_SIZE}")
        self.changes += 1
        self._table_size = most
        self._evict()

    def _evict(self) -> None:
        count = 0
        while self._size > self._table_size:
            self._size -= _entry_size(self._entries[count])
            count += 1
        del self._entries[:count]


def _entry_size(field: Field) -> int:
    return len(field[0]) + len(field[1]) + ENTRY_OVERHEAD


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """(value, position after it), section 5.1; `mask` has the bits of its prefix."""
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    for shift in range(0, 7 * MAX_INTEGER_BYTES, 7):
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
    raise CompressionError("a header block has an integer that is too long")


def _string(block: bytes, position: int) -> tuple[str, int]:
    """(text, position after it), section 5.2."""
    coded = block[position] & 0x80
    length, position = _integer(block, position, 0x7F)
    end = position + length
    if end > len(block):
        raise CompressionError("a header block is truncated")
    data = block[position:end]
    if coded:
        try:
            data = huffman.decode(data)
        except ValueError as error:
            raise CompressionError(str(error)) from None
    return data.decode("latin-1"), end


# Encoding

_NAMES = {name: index for index, (name, _) in reversed(list(enumerate(STATIC_TABLE)))}
_STATUSES = {
    int(value): bytes((0x80 | index,))
    for index, (name, value) in enumerate(STATIC_TABLE)
    if name == ":status"
}


def encode_status(status: int) -> bytes:
    """The pseudo-field `:status`."""
    return _STATUSES.get(status) or encode_field(":status", str(status))


def encode_field(name: str, value: str) -> bytes:
    """A field with a name in lower case, as a literal that changes no table."""
    pattern = 0x10 if name in NEVER_INDEXED else 0
    index = _NAMES.get(name, 0)
    text = value.encode("latin-1")
    if index:
        return encode_integer(index, 0x0F, pattern) + encode_integer(len(text), 0x7F) + text
    raw = name.encode("latin-1")
    return b"%c%b%b%b%b" % (
        pattern, encode_integer(len(raw), 0x7F), raw, encode_integer(len(text), 0x7F), text,
    )  # fmt: skip


def encode_fields(fields: Iterable[Field]) -> bytes:
    """A block of fields."""
    return b"".join(encode_field(name, value) for name, value in fields)


# A table size update to 0: the encoder uses no dynamic table (section 4.2)
EMPTY_TABLE = b"\x20"


def encode_integer(value: int, mask: int, pattern: int = 0) -> bytes:
    """Section 5.1; `pattern`: the bits before the prefix."""
    if value < mask:
        return bytes((pattern | value,))
    encoded = bytearray((pattern | mask,))
    value -= mask
    while value >= 0x80:
        encoded.append(0x80 | value & 0x7F)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
