"""A certificate authority of one's own for a Ray cluster, and the token that its nodes share.

    folder/ca.crt, ca.key            the authority; the key stays on the operator's machine
    folder/nodes/NAME/               node.crt, node.key and a copy of ca.crt: what goes to the node
    folder/token                     what every node shows to every other

Ray asks each side of a connection for a certificate of the one authority, and checks that the other's names
the address it was called at: the node's addresses, and 127.0.0.1 and localhost for calls within the node.
Keys are ECDSA over P-256. Files that hold a secret are made readable by their owner alone.
"""

import datetime as dt
import ipaddress
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedray.errors import ConfigError
from fedray.runtime.credentials import Certificate, read_certificate

HOME = Path("~/.fedray/cluster")
CA_DAYS = 3650
NODE_DAYS = 365
MOST_DAYS = 36500  # a hundred years
TOKEN_BYTES = 32
EARLIER = dt.timedelta(hours=1)  # valid from: clocks of nodes may be a little behind
LOOPBACK = ("127.0.0.1", "localhost")
DNS_NAME = re.compile(r"(\*\.)?(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*")
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Authority:
    """The authority's certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(folder: Path, days: int = CA_DAYS, renew: bool = False) -> Certificate:
    """Make an authority in a folder, or give the one that is there a new validity.

    A renewal keeps the key, so certificates of nodes stay good; nodes need the new ca.crt before the old one
    ends. Raises ConfigError where there is one already, or none to renew.
    """
    _check_days(days)
    if renew:
        authority = _authority(folder)
        name, key = authority.certificate.subject, authority.key
    else:
        _check_free(folder)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedray cluster {secrets.token_hex(4)}")])
    certificate = _signed(_authority_builder(name, key, days), key)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not renew:
        _write_secret(folder / "ca.key", _pem(key))
    _write(folder / "ca.crt", certificate)  # last: a key without it is no authority
    return read_certificate(folder / "ca.crt")


def _check_free(folder: Path) -> None:
    """Refuse a folder that has an authority. A key alone is none, but for the nodes that it has signed."""
    if (folder / "ca.crt").exists():
        raise ConfigError(
            "there is an authority in this folder already, and its nodes trust no other. Fix: "
            "fedray cluster certs init --renew to lengthen it, or another --folder"
        )
    if copies := sorted((folder / "nodes").glob("*/ca.crt")):
        raise ConfigError(
            "ca.crt is not in this folder, and nodes are that it was given to. Fix: copy "
            f"nodes/{copies[0].parent.name}/ca.crt back to ca.crt, or another --folder"
        )


def make_node(
    folder: Path,
    name: str,
    addresses: Sequence[str] = (),
    names: Sequence[str] = (),
    days: int = NODE_DAYS,
    renew: bool = False,
) -> Certificate:
    """Make the certificate of a node that is reached at these addresses and names.

    A renewal makes a new key, and keeps addresses and names where none are given. No certificate outlives its
    authority. Raises ConfigError on an address that is none, a node that exists (or, renewed, does not), or
    where there is no authority, or one that has ended.
    """
    _check_days(days)
    if not NODE_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a node. Fix: letters, digits, '.', '_' and '-'")
    home = folder / "nodes" / name
    if renew and not (addresses or names):
        old = read_certificate(home / "node.crt")
        addresses, names = old.addresses, old.names
    if not addresses:
        raise ConfigError(
            f"node {name}: no address given, and Ray calls nodes by it. Fix: "
            f"fedray cluster certs node {name} --ip ADDRESS, that of `ray start --node-ip-address`"
        )
    if (home / "node.crt").exists() != renew:
        what = "no certificate to renew" if renew else "a certificate already"
        raise ConfigError(f"node {name} has {what}. Fix: {'leave --renew out' if renew else 'add --renew'}")
    authority = _valid_authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(
        _node_builder(authority, name, key, _alternatives(addresses, names), days), authority.key
    )
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_secret(home / "node.key", _pem(key))
    _write(home / "node.crt", certificate)
    _write(home / "ca.crt", authority.certificate)
    return read_certificate(home / "node.crt")


def make_token(path: Path) -> None:
    """Write a new token to a file that only its owner may read. Raises ConfigError where there is one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.is_file() and path.stat().st_size == 0:
        path.unlink()  # one that was stopped between making the file and writing it
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            "there is a token already, and nodes that run would refuse those with another. Fix: move it away "
            "first, give the new one to every node, and start Ray again on all of them"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(TOKEN_BYTES))


def certificates(folder: Path) -> Iterator[tuple[str, Certificate]]:
    """Yield the authority's certificate and those of the nodes, by name."""
    yield "authority", read_certificate(folder / "ca.crt")
    for path in sorted((folder / "nodes").glob("*/node.crt")):
        yield path.parent.name, read_certificate(path)


def _authority(folder: Path) -> Authority:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except FileNotFoundError:
        raise ConfigError(
            "there is no authority in this folder. Fix: fedray cluster certs init, or --folder FOLDER"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the authority in this folder cannot be read ({type(error).__name__}). Fix: restore ca.crt and "
            "ca.key from their copy, or start anew in another --folder"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError("ca.key is not the key of ca.crt. Fix: restore both from one copy")
    return Authority(certificate, key)


def _valid_authority(folder: Path) -> Authority:
    authority = _authority(folder)
    ends = authority.certificate.not_valid_after_utc
    if ends <= dt.datetime.now(dt.UTC):
        raise ConfigError(
            f"the authority ended on {ends:%Y-%m-%d}. Fix: fedray cluster certs init --renew, and the new "
            "ca.crt to every node"
        )
    return authority


def _alternatives(addresses: Sequence[str], names: Sequence[str]) -> list[x509.GeneralName]:
    """Return what a node may be called at, its own loopback among it, in order and once."""
    found: dict[x509.GeneralName, None] = {}
    for address in (*addresses, LOOPBACK[0]):
        try:
            found[x509.IPAddress(ipaddress.ip_address(address))] = None
        except ValueError:
            raise ConfigError(
                f"{address!r} is no IP address. Fix: --ip 10.0.0.1; a name goes to --dns"
            ) from None
    for name in (*names, LOOPBACK[1]):
        if not DNS_NAME.fullmatch(name) or len(name) > 253:
            raise ConfigError(
                f"{name!r} is no DNS name. Fix: --dns h001.example, in ASCII (punycode), parts of letters, "
                "digits and '-' with dots between them"
            )
        found[x509.DNSName(name)] = None
    return list(found)


def _validity(
    builder: x509.CertificateBuilder, days: int, latest: dt.datetime | None = None
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    ends = now + dt.timedelta(days=days)
    return builder.not_valid_before(now - EARLIER).not_valid_after(min(ends, latest) if latest else ends)


def _authority_builder(
    name: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    public = key.public_key()
    builder = x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=public)
    return (
        _validity(builder.serial_number(x509.random_serial_number()), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _node_builder(
    authority: Authority,
    name: str,
    key: ec.EllipticCurvePrivateKey,
    alternatives: Sequence[x509.GeneralName],
    days: int,
) -> x509.CertificateBuilder:
    public, issuer = key.public_key(), authority.certificate
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # nodes call each other
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer.subject, public_key=public)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return (
        _validity(builder.serial_number(x509.random_serial_number()), days, issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(identifier, critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return builder.sign(key, hashes.SHA256())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _check_days(days: int) -> None:
    if not 1 <= days <= MOST_DAYS:
        raise ConfigError(
            f"--days {days}: a certificate is valid for 1 to {MOST_DAYS} days. Fix: --days {NODE_DAYS}"
        )


def _write(path: Path, certificate: x509.Certificate) -> None:
    _replace(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write_secret(path: Path, content: bytes) -> None:
    _replace(path, content, 0o600)


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole or not at all; its mode holds from the first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
