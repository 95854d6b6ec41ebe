"""Keys and certificates for a sweep on several machines.

One call makes an authority, signs a certificate for each machine with it, and forgets the authority's key. So nobody
can add a machine later, and there is nothing to keep safe but the folders that were written.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_node.errors import ConfigError
from fl_node.runtime import files

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "cert.pem", "key.pem"
BEFORE = datetime.timedelta(hours=1)
"""Clocks of machines may differ."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Files:
    """The files of one machine."""

    authority: Path
    certificate: Path
    key: Path


def check(folder: Path) -> Files:
    """Return the files in the folder of a machine.

    Raises
    ------
    ConfigError
        One of them is missing or damaged, they don't belong together or have expired, or others than its owner can
        read the key.
    """
    tls = Files(folder / AUTHORITY, folder / CERTIFICATE, folder / KEY)
    for path in (tls.authority, tls.certificate, tls.key):
        try:
            with path.open("rb"):
                mode = path.stat().st_mode
        except OSError as error:
            raise ConfigError(
                f"--tls {folder}: {path.name}: {error.strerror}; fl-node sweep-keys makes it"
            ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"--tls {folder}: others can read {KEY}: chmod 600 {tls.key}")
    again = "make the keys of all machines again with fl-node sweep-keys"
    try:
        context = ssl.create_default_context(cafile=str(tls.authority))
        context.load_cert_chain(tls.certificate, tls.key, password="")  # asks for none
        certificate = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
        authority = x509.load_pem_x509_certificate(tls.authority.read_bytes())
        certificate.verify_directly_issued_by(authority)
    except (OSError, ValueError, TypeError, InvalidSignature) as error:
        raise ConfigError(f"--tls {folder}: its files are damaged or don't belong together; {again}") from error
    if (end := certificate.not_valid_after_utc) < datetime.datetime.now(datetime.UTC):
        raise ConfigError(f"--tls {folder}: {CERTIFICATE} expired on {end:%Y-%m-%d}; {again}")
    return tls


def create(folder: Path, machines: Sequence[str], days: int) -> list[Path]:
    """Make a folder with key and certificates for each machine, and return these folders.

    Parameters
    ----------
    folder
        Where the machines' folders are made.
    machines
        Names or addresses of the machines, which name their folders.
    days
        How long the certificates are valid.

    Raises
    ------
    ConfigError
        A name is not possible or given twice, there is such a folder already, or files can't be written.
    """
    if wrong := [name for name in machines if not _NAME.fullmatch(name)]:
        raise ConfigError(
            f"{wrong[0]!r}: should be a machine's name or address, of letters, digits, dots and hyphens"
        )
    if twice := next((name for name in machines if machines.count(name) > 1), None):
        raise ConfigError(f"{twice} is given twice")
    if kept := next((folder / name for name in machines if (folder / name).exists()), None):
        raise ConfigError(f"{kept} exists; keys are made for all machines at once: remove it, or use another folder")
    begin = datetime.datetime.now(datetime.UTC) - BEFORE
    end = begin + BEFORE + datetime.timedelta(days=days)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl-node sweep")])
    signer = ec.generate_private_key(ec.SECP256R1())
    authority = (
        _certificate(issuer, issuer, signer, signer, begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(signer, hashes.SHA256())
    )
    folders = []
    for name in machines:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            _certificate(subject, issuer, key, signer, begin, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(usages, critical=False)
            .add_extension(x509.SubjectAlternativeName([_alternative(name)]), critical=False)
            .sign(signer, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            (folder / name).mkdir(parents=True, mode=0o700)
            for file, content in (
                (AUTHORITY, authority.public_bytes(serialization.Encoding.PEM)),
                (CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM)),
                (KEY, private),
            ):
                handle = os.open(folder / name / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
        except OSError as error:
            raise ConfigError(f"keys of {name}: {files.described(error)}") from error
        folders.append(folder / name)
    return folders


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
