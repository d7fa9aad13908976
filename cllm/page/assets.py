"""The page's files: read, hashed and compressed once, then served from memory."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from posixpath import normpath

from cllm.http import HttpError, HttpRequest, HttpResponse

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"
# What a first visit needs; the page names all that these import, so that nothing waits for a chain.
_FIRST = ("app.js", "chat/view.js")
_IMPORT = re.compile(r'^import [^;]*?"(\.[^"]+)";', re.MULTILINE)

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FIELDS = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)
# The path of a file has the hash of all files, so what it names never changes.
_FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _File:
    content_type: str
    plain: bytes
    packed: bytes
    etag: str

    @classmethod
    def of(cls, content: bytes, suffix: str) -> _File:
        packed = gzip.compress(content, 9, mtime=0)
        return cls(_TYPES[suffix], content, packed, sha256(content).hexdigest()[:32])


class Assets:
    """All files of a folder. `version` is a hash of their names and contents."""

    def __init__(self, folder: Path = FOLDER) -> None:
        contents = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.suffix in _TYPES
        }
        digest = sha256()
        for name, content in contents.items():
            digest.update(b"%s %d " % (name.encode(), len(content)) + content)
        self.version = digest.hexdigest()[:16]
        links = (
            f'<link rel="modulepreload" href="page/static/VERSION/{name}">'
            for name in needed(contents, *_FIRST)
        )
        index = contents.pop(INDEX).replace(b"PRELOADED", "\n".join(links).encode())
        index = index.replace(b"VERSION", self.version.encode())
        self._index = _File.of(index, ".html")
        self._files = {
            name: _File.of(content, Path(name).suffix) for name, content in contents.items()
        }

    def index(self, request: HttpRequest) -> HttpResponse:
        """The page itself, which names the files of this version."""
        return _answer(request, self._index, "no-cache", "Accept, Accept-Encoding")

    def file(self, request: HttpRequest, version: str, name: str) -> HttpResponse:
        """A file by the path that the page names; raises HttpError 404.

        A page that was loaded before the server was renewed has another version: it gets 404 for
        files that it has not loaded yet, and is loaded again.
        """
        file = self._files.get(name) if version == self.version else None
        if file is None:
            raise HttpError(404, f"the page has no file {request.path}; reload the page")
        return _answer(request, file, _FOREVER, "Accept-Encoding")


def _answer(request: HttpRequest, file: _File, cache: str, vary: str) -> HttpResponse:
    packed = takes_gzip(request.headers.get("accept-encoding") or "")
    etag = f'"{file.etag}{"-gz" if packed else ""}"'
    fields = [*_FIELDS, ("Cache-Control", cache), ("Vary", vary), ("ETag", etag)]
    if _names(request.headers.get("if-none-match") or "", etag):
        return HttpResponse.empty(304, fields)
    if packed:
        fields.append(("Content-Encoding", "gzip"))
    return HttpResponse.bytes(file.packed if packed else file.plain, file.content_type, 200, fields)


def needed(contents: Mapping[str, bytes], *names: str) -> list[str]:
    """The modules of these names and all that they import, those that exist."""
    found: dict[str, None] = {}
    waiting = [name for name in names if name in contents]
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = None
            near = _IMPORT.findall(contents[name].decode())
            waiting += [normpath(f"{Path(name).parent.as_posix()}/{path}") for path in near]
    return list(found)


def takes_gzip(accepted: str) -> bool:
    """Whether the field Accept-Encoding allows gzip (RFC 9110 section 12.5.3)."""
    weights = weights_of(accepted)
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0


def weights_of(field: str) -> dict[str, float]:
    """The members of a field such as Accept, each with its weight (RFC 9110 section 12.4.2)."""
    weights: dict[str, float] = {}
    for member in field.split(","):
        name, *parameters = (part.strip() for part in member.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        if name:
            weights[name.lower()] = max(weight, weights.get(name.lower(), 0.0))
    return weights


def _names(field: str, etag: str) -> bool:
    """Whether If-None-Match lists the entity tag, by the weak comparison (section 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for tag in field.split(",")}
    return etag in tags or "*" in tags
