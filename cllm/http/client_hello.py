"""The host name in a ClientHello, read before OpenSSL gets it (RFC 8446 section 4.1.2).

Python's own callback for the name writes a traceback to standard error if it is not ASCII.
"""

from __future__ import annotations

HANDSHAKE_RECORD = 0x16  # first byte of a connection (RFC 8446 section 5.1)

# A longer hello, or one in more records, names no host here. Those of browsers have 0.5 to 2 KB.
MOST = 16 * 1024  # bytes
_MOST_RECORDS = 16

_RECORD_HEADER = 5  # bytes: type, version, length
_MESSAGE_HEADER = 4  # type, length
_CLIENT_HELLO = 1
_SERVER_NAME, _HOST_NAME = 0, 0  # RFC 6066 section 3


def client_hello(data: bytes) -> tuple[bytes, int]:
    """From the first bytes of a connection: the message, and the bytes it needs to be complete.

    Their number rises as headers arrive. It is not above len(data) if the message is complete, or
    if it cannot be a ClientHello.
    """
    message, at = b"", 0
    for _ in range(_MOST_RECORDS):
        header = data[at : at + _RECORD_HEADER]
        if len(header) < _RECORD_HEADER:
            return message, at + _RECORD_HEADER
        if header[0] != HANDSHAKE_RECORD:
            break
        begin = at + _RECORD_HEADER
        at = begin + _number(header, 3)
        if len(data) < at:
            return message, at
        message += data[begin:at]
        if _is_complete(message):
            break
    return message, 0


def server_name(message: bytes) -> str:
    """The host that a ClientHello names, in lower case; "" for none, or for one not in ASCII.

    Also "" for a message that is not complete: a part of a name may be another host's.
    """
    try:
        if message[0] != _CLIENT_HELLO or not _is_complete(message):
            return ""
        at = _MESSAGE_HEADER + 2 + 32  # the version and the random bytes
        at += 1 + message[at]  # the session
        at += 2 + _number(message, at)  # cipher suites
        at += 1 + message[at]  # compression methods
        end = at + 2 + _number(message, at)
        at += 2
        while at < end:
            kind, size = _number(message, at), _number(message, at + 2)
            at += 4
            if kind == _SERVER_NAME:  # a list with one name: length, type, length, name
                if message[at + 2] != _HOST_NAME:
                    return ""
                return message[at + 5 : at + 5 + _number(message, at + 3)].decode("ascii").lower()
            at += size
    except (IndexError, UnicodeDecodeError):
        return ""
    return ""


def _is_complete(message: bytes) -> bool:
    return len(message) >= _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")


def _number(data: bytes, at: int) -> int:
    """Two bytes; raises IndexError if they are not there."""
    return data[at] << 8 | data[at + 1]
