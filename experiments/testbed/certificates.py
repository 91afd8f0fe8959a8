"""Certificates for mutual TLS between the test hosts: an authority, and one certificate for each address.

A helper for tests, until `fedray cluster certs` makes them.
"""

import datetime as dt
import ipaddress
from collections.abc import Mapping, Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID = dt.timedelta(days=2)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + VALID)
    )


def _text(key: ec.EllipticCurvePrivateKey) -> str:
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain).decode()


def certificates(addresses: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Return ca.crt, node.crt and node.key for each name, as text: good for its addresses."""
    authority = ec.generate_private_key(ec.SECP256R1())
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    root = _builder("testbed", "testbed", authority.public_key()).add_extension(constraints, critical=True)
    own = root.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    found = {}
    for host, own_addresses in addresses.items():
        key = ec.generate_private_key(ec.SECP256R1())
        numbers = [x509.IPAddress(ipaddress.ip_address(one)) for one in (*own_addresses, "127.0.0.1")]
        names = x509.SubjectAlternativeName([*numbers, x509.DNSName("localhost"), x509.DNSName(host)])
        signed = _builder(host, "testbed", key.public_key()).add_extension(names, critical=False)
        certificate = signed.sign(authority, hashes.SHA256())
        text = certificate.public_bytes(serialization.Encoding.PEM).decode()
        found[host] = {"ca.crt": own, "node.crt": text, "node.key": _text(key)}
    return found
