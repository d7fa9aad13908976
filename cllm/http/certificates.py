"""Certificates: from files to TLS contexts, one for each host name, and again when files change."""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from cllm.http.errors import HttpServerError

_log = logging.getLogger("cllm.http")

# The first handshake after this time looks at the files again.
LOOK_INTERVAL = 1.0  # s

# Clients end without close_notify. OpenSSL 3 would answer that with an alert; HTTP's framing shows
# whether a request is complete.
_END_OF_FILE_IS_AN_END = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

CLIENT_AUTH = {"optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """The certificates of a server, and what it asks of its clients. Files are PEM.

    certificates: (certificate with its chain, private key) for each host name or group of names;
    the first one is also for clients that name no host or an unknown one. client_ca: accept client
    certificates that these authorities signed. client_auth: "required", or "optional" to serve
    clients without one as well.
    """

    certificates: tuple[tuple[str, str], ...]
    client_ca: str | None = None
    client_auth: str = "required"

    def __post_init__(self) -> None:
        if not self.certificates:
            raise ValueError("TlsConfig.certificates is empty; give a certificate and its key")
        if self.client_auth not in CLIENT_AUTH:
            raise ValueError(
                f"TlsConfig.client_auth is {self.client_auth!r}; give one of "
                f"{', '.join(CLIENT_AUTH)}"
            )

    @property
    def files(self) -> list[str]:
        """Every file that is read."""
        files = [file for pair in self.certificates for file in pair]
        return files + ([] if self.client_ca is None else [self.client_ca])


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What one reading of the files gave."""

    outer: ssl.SSLContext  # has the keys of session tickets, and the sessions without tickets
    default: ssl.SSLContext  # for unknown names
    by_name: dict[str, ssl.SSLContext]
    authorities: str  # content of `client_ca`


class Certificates:
    """The contexts of a server. `wrap` from any thread; reloading does not touch connections.

    A connection begins with the outer context, which stays as long as the client authorities do: a
    client that resumes a session is not asked for its certificate again. Before its handshake the
    connection gets the context of the certificate of the host that the client names.
    """

    def __init__(self, config: TlsConfig, protocols: Sequence[str]) -> None:
        """protocols: for ALPN, the preferred one first. Raises HttpServerError for a file."""
        self._config = config
        self._protocols = list(protocols)
        self._lock = threading.Lock()  # one reload at a time
        self._seen = self._versions()
        self._loaded = self._load(None)
        self._failure = ""  # why the files could not be used
        self._next_look = monotonic() + LOOK_INTERVAL
        self.by_name = len(config.certificates) > 1  # whether the host name matters

    def wrap(self, sock: socket.socket, name: str = "") -> ssl.SSLSocket:
        """The server's side of a connection, before its handshake. Takes over the descriptor.

        name: the host that the client names, in lower case (RFC 6066 section 3).
        """
        if monotonic() >= self._next_look:
            self._look()
        loaded = self._loaded  # once: another thread may reload
        wrapped = loaded.outer.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        # RFC 6125 section 6.4.3: a wildcard stands for one label.
        contexts, wildcard = loaded.by_name, "*." + name.partition(".")[2]
        wrapped.context = contexts.get(name) or contexts.get(wildcard) or loaded.default
        return wrapped

    def reload(self) -> bool:
        """Read the files again. If one cannot be used, log it and keep what is loaded."""
        with self._lock:
            return self._reload()

    def _look(self) -> None:
        """Reload if a file has changed, or could not be used: it may have been in the making."""
        if not self._lock.acquire(False):
            return  # another thread does
        try:
            self._next_look = monotonic() + LOOK_INTERVAL
            if self._failure or self._versions() != self._seen:
                self._reload(again=bool(self._failure))
        finally:
            self._lock.release()

    def _reload(self, *, again: bool = False) -> bool:
        """again: nobody asks, so the same failure is not logged a second time."""
        self._seen = self._versions()  # before they are read: a later change is seen
        try:
            loaded = self._load(self._loaded)
        except HttpServerError as error:
            text, before = str(error), self._failure
            self._failure = text
            if not (again and text == before):
                _log.error("the new TLS certificates cannot be used, the old ones stay: %s", text)
            return False
        new_authorities = loaded.outer is not self._loaded.outer
        self._loaded, self._failure = loaded, ""
        if new_authorities:
            _log.info("the client authorities are new: earlier TLS sessions cannot be resumed")
        _log.info("loaded the TLS certificates: %s", ", ".join(sorted(loaded.by_name)) or "no name")
        return True

    def _versions(self) -> list[tuple[int, int, int, int] | None]:
        found: list[tuple[int, int, int, int] | None] = []
        for file in self._config.files:
            try:
                status = os.stat(file)
            except OSError:
                found.append(None)
            else:
                # The last one changes with the owner and the mode, too.
                found.append(
                    (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                )
        return found

    def _load(self, before: _Loaded | None) -> _Loaded:
        """Read the files; raises HttpServerError for one that cannot be used."""
        authorities = "" if self._config.client_ca is None else _readable(self._config.client_ca)
        contexts: list[ssl.SSLContext] = []
        by_name: dict[str, ssl.SSLContext] = {}
        for certificate, key in self._config.certificates:
            context = self._context()
            pem = _readable(certificate)
            _readable(key)
            try:
                context.load_cert_chain(certificate, key, password=_no_password)
                names = host_names(ssl.PEM_cert_to_DER_cert(_first_certificate(pem)))
            except (OSError, ValueError) as error:  # a file may be gone since it was read
                raise HttpServerError(
                    f"the certificate {certificate} with the key {key} cannot be used: "
                    f"{_reason(error)}"
                ) from None
            contexts.append(context)
            for name in names:
                by_name.setdefault(name, context)
        if before is None or before.authorities != authorities:
            outer = self._context()
        else:
            outer = before.outer
        return _Loaded(outer, contexts[0], by_name, authorities)

    def _context(self) -> ssl.SSLContext:
        """Without a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | _END_OF_FILE_IS_AN_END
        context.set_alpn_protocols(self._protocols)
        file = self._config.client_ca
        if file is not None:
            try:
                context.load_verify_locations(file)
            except OSError as error:
                raise HttpServerError(
                    f"the client authorities {file} cannot be used: {_reason(error)}"
                ) from None
            context.verify_mode = CLIENT_AUTH[self._config.client_auth]
        return context


def _readable(file: str) -> str:
    try:
        with open(file, encoding="latin-1") as stream:
            return stream.read()
    except OSError as error:
        raise HttpServerError(f"cannot read {file}: {error.strerror}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a passphrase")


def _first_certificate(pem: str) -> str:
    found = re.search(f"{ssl.PEM_HEADER}.*?{ssl.PEM_FOOTER}", pem, re.DOTALL)
    if found is None:
        raise ValueError("the file has no certificate in PEM")
    return found[0]


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key belongs to another certificate"
    # Python has no name for some of OpenSSL's reasons.
    unnamed = "PEM lib" in str(error)
    if unnamed or reason in ("PEM", "PEM_LIB", "NO_START_LINE", "NO_CERTIFICATE_OR_CRL_FOUND"):
        return "a file is not PEM, or has not what it should have"
    return str(error)


# X.690 tags, as they occur in a certificate (RFC 5280 sections 4.1, 4.2.1.6)
_OID, _EXTENSIONS, _DNS_NAME = 0x06, 0xA3, 0x82
_SUBJECT_ALT_NAME = b"\x55\x1d\x11"  # 2.5.29.17


def host_names(der: bytes) -> list[str]:
    """The DNS names of a certificate, in lower case; "*.example.org" for a wildcard.

    Raises ValueError if it is not a certificate.
    """
    try:
        ((_, certificate),) = _elements(der)
        _, to_be_signed = next(_elements(certificate))
        for tag, value in _elements(to_be_signed):
            if tag == _EXTENSIONS:
                ((_, extensions),) = _elements(value)
                for _, extension in _elements(extensions):
                    parts = list(_elements(extension))  # OID, perhaps a boolean, octet string
                    if parts[0] == (_OID, _SUBJECT_ALT_NAME):
                        ((_, names),) = _elements(parts[-1][1])
                        return [
                            name.decode("ascii").lower()
                            for kind, name in _elements(names)
                            if kind == _DNS_NAME
                        ]
    except (IndexError, StopIteration, UnicodeDecodeError) as error:
        raise ValueError("the certificate is malformed") from error
    return []


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of each element in DER; raises IndexError, ValueError."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[at : at + count], "big")
            at += count
        if at + length > len(data):
            raise ValueError("an element is cut")
        yield tag, data[at : at + length]
        at += length
