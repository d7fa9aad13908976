"""Content codings of request bodies: gzip is decoded, others are refused (RFC 9110 section 8.4)."""

from __future__ import annotations

import zlib

from cllm.http.errors import HttpError
from cllm.http.incoming import SMALL, BodyMemory
from cllm.http.request import Headers, HttpRequest

GZIP = ("gzip", "x-gzip")  # RFC 9110 section 8.4.1.3

# Each member costs a new decompressor and a copy of the rest of its slice. Tools that write many
# members (one for each block of 64 KiB) stay far below.
MAX_MEMBERS = 1024
_SLICE = 64 * 1024  # input bytes for each decompressor call
_STEP = 256 * 1024  # output bytes of each call, at most
_GZIP_ONLY = 16 + zlib.MAX_WBITS


def check_coding(request: HttpRequest) -> bool:
    """Whether the body has to be decoded. Raises HttpError 415 if it cannot be."""
    listed = request.headers.get("content-encoding") or ""
    codings = [word.strip(" \t").lower() for word in listed.split(",")]
    codings = [word for word in codings if word and word != "identity"]
    if not codings:
        return False
    if len(codings) == 1 and codings[0] in GZIP:
        return True
    # RFC 9110 section 15.5.16, 12.5.3: the field lists what would be accepted.
    raise HttpError(
        415,
        f"the content coding {', '.join(codings)[:80]!r} is not supported; "
        "send the body in gzip or without a coding",
        [("Accept-Encoding", "gzip")],
    )


def decode(request: HttpRequest, limit: int, memory: BodyMemory) -> None:
    """Replace the body with the decoded one, and change its fields accordingly.

    limit: bytes of the decoded body. memory: counts them meanwhile, and refuses no small body.
    Raises HttpError 400, 413, 415, 503.
    """
    if check_coding(request):
        request.body = gunzip(request.body, limit, memory)
    fields = []
    for name, value in request.headers.items():
        lower = name.lower()
        if lower == "content-length":
            fields.append((name, str(len(request.body))))
        elif lower != "content-encoding":
            fields.append((name, value))
    request.headers = Headers(fields)


def gunzip(data: bytes, limit: int, memory: BodyMemory) -> bytes:
    """One or more gzip members (RFC 1952) and nothing else; raises HttpError 400, 413, 503."""
    pieces: list[bytes] = []
    size = position = members = 0
    view = memoryview(data)
    try:
        while position < len(data):
            members += 1
            if members > MAX_MEMBERS:
                raise HttpError(400, f"the gzip body has more than {MAX_MEMBERS} members")
            inflate = zlib.decompressobj(_GZIP_ONLY)
            while not inflate.eof:
                if position == len(data):
                    raise HttpError(400, "the gzip body is truncated; send all of it")
                part: bytes | memoryview = view[position : position + _SLICE]
                position += len(part)
                while True:
                    most = min(_STEP, limit - size + 1)  # one byte more reveals a longer body
                    piece = inflate.decompress(part, most)
                    if size + len(piece) > limit:
                        raise HttpError(413, f"the decoded body is larger than {limit} bytes")
                    memory.take(len(piece), small=size + len(piece) <= SMALL)
                    size += len(piece)
                    pieces.append(piece)
                    part = inflate.unconsumed_tail
                    if inflate.eof or (not part and len(piece) < most):
                        break
            position -= len(inflate.unused_data)
        return b"".join(pieces)
    except zlib.error as error:
        where = "" if members == 1 else f" (member {members})"
        raise HttpError(400, f"the body is not valid gzip{where}: {error}") from None
    finally:
        memory.take(-size)
