"""The Huffman code of HPACK: decoding only, since the encoder sends strings as they are (RFC 7541).

The code is canonical (section 5.2): the lengths of the codes determine the codes. Within a length
they rise in the order of the symbols.
"""

from __future__ import annotations

# RFC 7541 appendix B: the symbols by the length of their code in bits.
SYMBOLS = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2",
    21: b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6",
    22: b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4"
    b"\xc6\xe4\xe8\xe9",
    23: b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4"
    b"\xb6\xb7\xbc\xbf\xc5\xe7\xef",
    24: b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed",
    25: b"\xc7\xcf\xea\xeb",
    26: b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff",
    27: b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe",
    28: b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b"
    b"\x1c\x1d\x1e\x1f\x7f\xdc\xf9",
    30: b"\n\r\x16",
}
EOS = 0x3FFFFFFF  # thirty ones: the end-of-string symbol, which no string may contain
MAX_PADDING = 7  # bits; they are the first bits of EOS

_ROOT = 0
_NOTHING = -1  # the four bits complete no symbol
_FAILS = -2  # they complete EOS


def _codes() -> dict[tuple[int, int], int]:
    """Symbols by (length, code)."""
    codes = {}
    code = length = 0
    for bits, symbols in SYMBOLS.items():
        code <<= bits - length
        length = bits
        for symbol in symbols:
            codes[length, code] = symbol
            code += 1
    assert (length, code) == (30, EOS)
    return codes


def _machine() -> tuple[list[tuple[int, int]], frozenset[int]]:
    """(transitions, states that may end a string).

    A state is the bits read of the next code, numbered in steps of 16, so that `state + nibble` is
    the index of a transition: (next state, symbol). Four bits complete at most one symbol, since
    the shortest code has five.
    """
    codes = _codes()
    numbers = {(0, 0): _ROOT}
    for length, code in codes:
        for size in range(1, length):
            numbers.setdefault((size, code >> (length - size)), 16 * len(numbers))
    transitions = []
    for length, code in numbers:  # in the order of their numbers
        for nibble in range(16):
            size, bits, symbol = length, code, _NOTHING
            for shift in (3, 2, 1, 0):
                size, bits = size + 1, bits << 1 | (nibble >> shift & 1)
                found = codes.get((size, bits))
                if found is not None:
                    size, bits, symbol = 0, 0, found
                elif (size, bits) == (30, EOS):
                    size, bits, symbol = 0, 0, _FAILS
                    break
            transitions.append((numbers[size, bits], symbol))
    ends = frozenset(numbers[size, (1 << size) - 1] for size in range(MAX_PADDING + 1))
    return transitions, ends


_TRANSITIONS, _ENDS = _machine()


def decode(data: bytes) -> bytes:
    """The text of a Huffman string; raises ValueError for EOS in it, or a wrong padding."""
    transitions = _TRANSITIONS
    text = bytearray()
    append = text.append
    state = _ROOT
    for byte in data:
        state, symbol = transitions[state + (byte >> 4)]
        if symbol >= 0:
            append(symbol)
        elif symbol == _FAILS:
            raise ValueError("a Huffman string contains EOS")
        state, symbol = transitions[state + (byte & 15)]
        if symbol >= 0:
            append(symbol)
        elif symbol == _FAILS:
            raise ValueError("a Huffman string contains EOS")
    if state not in _ENDS:
        raise ValueError("a Huffman string ends with a padding that is too long or not ones")
    return bytes(text)
