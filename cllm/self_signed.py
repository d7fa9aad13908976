"""A certificate for a first try of HTTPS on one machine: made once, kept in the user's cache."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from cllm.engine.machine.user_cache import replacing, user_cache
from cllm.option_table import SettingsError

if TYPE_CHECKING:
    from cryptography import x509

VALID = timedelta(days=365)
RENEW = timedelta(days=7)  # before the end

_LOCAL = ("localhost", "127.0.0.1", "::1")


def self_signed(host: str) -> tuple[str, str]:
    """Files of a certificate for this machine's names and `host`, and of its key.

    The same files at each start, until they are about to expire; others for other hosts, whose
    servers may run. Raises SettingsError for a host that no certificate can name, and without the
    package cryptography.
    """
    names = list(dict.fromkeys((*_LOCAL, *_named(f"{socket.gethostname()},{host}"))))
    further = names[len(_LOCAL) :]
    folder = user_cache() / "tls"
    folder.mkdir(mode=0o700, exist_ok=True)
    digest = sha256(" ".join(sorted(further)).encode()).hexdigest()[:12]
    stem = f"self-signed-{digest}"
    certificate, key = folder / f"{stem}.pem", folder / f"{stem}.key"
    if not _usable(certificate, key, names):
        _make(certificate, key, names)
    return str(certificate), str(key)


def _named(host: str) -> Sequence[str]:
    given = (name.strip() for name in host.split(","))
    plain = dict.fromkeys(_plain(name) for name in given if name)
    return [name for name in plain if name not in ("0.0.0.0", "::")]


def _plain(name: str) -> str:
    """A host as a certificate has it: an address in its usual form, a name in ASCII."""
    try:
        return str(ip_address(name.partition("%")[0]))
    except ValueError:
        pass
    try:
        return name.encode("idna").decode()
    except UnicodeError as error:
        raise SettingsError(f"--host: {name!r} is no name for a certificate: {error}") from None


def _usable(certificate: Path, key: Path, names: Sequence[str]) -> bool:
    """Whether it is of this key, for these names and valid for a while."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError:
        raise SettingsError(
            "--tls-self-signed needs cryptography; in cLLM's folder: pip install '.[tls]'"
        ) from None
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        known = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        private = load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    if private.public_key() != found.public_key():
        return False  # two programs made one at the same time
    has = [str(item.value) for item in known]
    return sorted(has) == sorted(names) and found.not_valid_after_utc - RENEW > datetime.now(
        timezone.utc
    )


def _make(certificate: Path, key: Path, names: Sequence[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cLLM, self-signed")])
    now = datetime.now(timezone.utc)
    usage = dict.fromkeys(
        (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # for clocks that are late
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName([_general(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(private, hashes.SHA256())
    )
    with replacing(key) as part:  # mkstemp makes it readable for its owner only
        part.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    with replacing(certificate) as part:
        part.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def _general(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
