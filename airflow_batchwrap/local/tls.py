"""TLS: a certificate authority of the data directory, and the certificate that the service shows.

SDKs of Azure send an identity's tokens over TLS alone. A client trusts the service once it trusts ``DIR/ca.pem``::

    files = tls.make(Home.make(Path("batch-data")))
    os.environ["SSL_CERT_FILE"] = os.environ["REQUESTS_CA_BUNDLE"] = str(files.authority)
"""

from __future__ import annotations

import ipaddress
import secrets
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_batchwrap.local.home import Home, HomeError
from airflow_batchwrap.local.hosts import LOOPBACK

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, GeneralName, KeyUsage

#: How long the authority and what it signs are good for. 398 days is the most that browsers take from a server
#: (https://support.apple.com/en-us/102028).
_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 397
#: A certificate that ends sooner than this is made anew at a start.
_RENEW_DAYS = 30


@dataclass(frozen=True)
class TlsFiles:
    """What a service needs for TLS.

    :param certificate: its certificate in PEM, followed by those between it and the authority.
    :param key: its private key in PEM; may be the same file.
    :param authority: the certificate of the authority, for clients to trust; None where it is not known.
    """

    certificate: Path
    key: Path
    authority: Path | None = None


def make(home: Home, *names: str) -> TlsFiles:
    """Make the directory's authority the first time, and a certificate that it has signed for these names.

    Two processes may do so at once: both get the same authority. Private keys are readable for their owner alone.

    :param home: the data directory.
    :param names: host names and addresses beside those of loopback.
    :return: the files.
    """
    _authority(home)
    wanted = sorted({*LOOPBACK, *names})
    if not _covers(home.path / "tls.pem", home.path / "ca.pem", wanted):
        key, certificate = _server(home, wanted)
        home.write("tls.pem", (_pem(key) + _pem(certificate)).decode(), replace=True)
    return TlsFiles(home.path / "tls.pem", home.path / "tls.pem", home.path / "ca.pem")


def own(certificate: Path, key: Path) -> TlsFiles:
    """Use a certificate that somebody else has signed.

    :param certificate: its file, in PEM.
    :param key: the private key's file, in PEM and without a passphrase.
    :return: the files.
    :raises HomeError: they cannot be read, or do not belong together.
    """
    files = TlsFiles(certificate.absolute(), key.absolute())
    context(files)
    return files


def context(files: TlsFiles) -> ssl.SSLContext:
    """Return what a server speaks TLS with.

    :raises HomeError: the files cannot be used.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # The empty passphrase: else OpenSSL asks for one at the terminal.
        made.load_cert_chain(files.certificate, files.key, password="")
    except (OSError, ssl.SSLError) as error:
        raise HomeError(
            f"The certificate {files.certificate} and its key {files.key} cannot be used "
            f"({error.strerror or type(error).__name__}): give two files in PEM that belong together, the "
            "key without a passphrase."
        ) from None
    return made


# --- the authority


def _authority(home: Home) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    path = home.path / "ca.key"
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        # A name of its own: a client that trusts several of these looks for the right one by its name.
        name = x509.Name(
            [x509.NameAttribute(x509.NameOID.COMMON_NAME, f"airflow-batchwrap local authority {secrets.token_hex(4)}")]
        )
        usage = _usage(key_cert_sign=True, crl_sign=True)
        made = (
            _builder(_AUTHORITY_DAYS)
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        # Key and certificate in one file, which is there whole or not at all; whoever comes second takes the first's.
        home.write("ca.key", (_pem(key) + _pem(_signed(made, key))).decode(), replace=False)
    home.write("ca.pem", _pem(_certificate(path)).decode(), replace=True)


def _server(home: Home, names: Iterable[str]) -> tuple[EllipticCurvePrivateKey, Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    issuer, key = _certificate(home.path / "ca.key"), ec.generate_private_key(ec.SECP256R1())
    signer = load_pem_private_key((home.path / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)  # noqa: S101 - it was made here
    made = (
        _builder(_SERVER_DAYS)
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "airflow-batchwrap local service")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)  # type: ignore[arg-type]
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
    )
    return key, _signed(made, signer)


def _covers(server: Path, authority: Path, names: list[str]) -> bool:
    """Whether a certificate is this authority's, names all of these, and is good for a while."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        found = _certificate(server)
        found.verify_directly_issued_by(_certificate(authority))
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    ends = found.not_valid_after_utc - datetime.now(UTC)
    return ends > timedelta(days=_RENEW_DAYS) and {_name(name) for name in names} <= set(alternatives)


def _builder(days: int) -> CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=15))
        .not_valid_after(now + timedelta(days=days))
    )


def _signed(made: CertificateBuilder, key: EllipticCurvePrivateKey) -> Certificate:
    from cryptography.hazmat.primitives import hashes

    return made.sign(key, hashes.SHA256())


def _name(name: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(**granted: bool) -> KeyUsage:
    from cryptography import x509

    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: granted.get(name, False) for name in names})


def _certificate(path: Path) -> Certificate:
    from cryptography import x509

    # What stands before the certificate in the file is the key.
    _, mark, rest = path.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")
    return x509.load_pem_x509_certificate(mark + rest)


def _pem(thing: EllipticCurvePrivateKey | Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    encoding = serialization.Encoding.PEM
    if hasattr(thing, "private_bytes"):
        return thing.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return thing.public_bytes(encoding)
