"""What a process shows a Ray cluster: token and certificate, as Ray takes them from the environment.

    RAY_AUTH_MODE=token  RAY_AUTH_TOKEN_PATH=FILE
    RAY_USE_TLS=1  RAY_TLS_SERVER_CERT=FILE  RAY_TLS_SERVER_KEY=FILE  RAY_TLS_CA_CERT=FILE

Loads neither Ray nor torch. What other nodes make of them is asked in ray_door.py.
"""

import datetime as dt
import ipaddress
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization

from fedray.errors import ConfigError
from fedray.runtime.findings import FAIL, NOTE, PASS, Finding

INSECURE = "FEDRAY_INSECURE_CLUSTER"
ENDS_SOON_DAYS = 30
TOLD_HOSTS = 5
TOKEN_FIX = (
    "fedray cluster certs token, copy it to every node with mode 0600, and on all of them "
    "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE"
)
TLS_FIX = (
    "fedray cluster certs init and fedray cluster certs node NAME --ip ADDRESS, and on every node export "
    "RAY_USE_TLS=1 RAY_TLS_SERVER_CERT=FILE RAY_TLS_SERVER_KEY=FILE RAY_TLS_CA_CERT=FILE"
)
OPEN_FIX = f"both, as docs/cluster-security.md says; on a private test network {INSECURE}=1 goes without"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says."""

    subject: str
    issuer: str
    serial: str
    starts: dt.datetime
    ends: dt.datetime
    addresses: tuple[str, ...]
    names: tuple[str, ...]
    fingerprint: str

    @property
    def days_left(self) -> int:
        """Whole days until it ends; negative where it has."""
        return (self.ends - dt.datetime.now(dt.UTC)).days

    @property
    def told_hosts(self) -> str:
        """What it names, in words: the first of many."""
        hosts = (*self.names, *self.addresses)
        more = f" and {len(hosts) - TOLD_HOSTS} more" if len(hosts) > TOLD_HOSTS else ""
        return ", ".join(hosts[:TOLD_HOSTS]) + more

    def is_for(self, host: str) -> bool:
        """Tell whether it names this address or DNS name."""
        try:
            return str(ipaddress.ip_address(host)) in self.addresses
        except ValueError:
            return host.lower() in {name.lower() for name in self.names}


@dataclass(frozen=True, slots=True)
class Credentials:
    """The token and the files of the certificate; None is what is not set."""

    token: str | None = None
    token_problem: str = ""
    uses_token: bool = False
    uses_tls: bool = False
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    token_file: Path | None = None

    @property
    def is_complete(self) -> bool:
        """Whether token and certificate are both in use."""
        return self.uses_token and self.token is not None and self.uses_tls


def from_environment(environment: Mapping[str, str] = os.environ) -> Credentials:
    """Return the credentials that Ray would take from an environment."""
    ask = environment.get
    files = {
        field: Path(value) if (value := ask(name)) else None
        for field, name in (
            ("certificate", "RAY_TLS_SERVER_CERT"),
            ("key", "RAY_TLS_SERVER_KEY"),
            ("authority", "RAY_TLS_CA_CERT"),
        )
    }
    token, file, problem = _token(environment)
    return Credentials(
        token=token,
        token_problem=problem,
        uses_token=ask("RAY_AUTH_MODE", "").lower() == "token",
        uses_tls=ask("RAY_USE_TLS", "0").lower() in ("1", "true"),
        token_file=file,
        **files,
    )


def _token(environment: Mapping[str, str]) -> tuple[str | None, Path | None, str]:
    """Return the token, its file and what is wrong with it, from where Ray looks, in its order."""
    if text := environment.get("RAY_AUTH_TOKEN"):
        return text.strip(), None, ""
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path(environment.get("HOME", "~")).expanduser() / ".ray" / "auth_token"
    if not named and not file.is_file():
        return None, None, "there is no token: neither RAY_AUTH_TOKEN nor RAY_AUTH_TOKEN_PATH is set"
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        return None, file, f"the token's file cannot be read ({type(error).__name__})"
    return (text, file, "") if text else (None, file, "the token's file is empty")


def read_certificate(path: Path) -> Certificate:
    """Read a certificate in PEM. Raises ConfigError where there is none."""
    try:
        return described(x509.load_pem_x509_certificate(path.read_bytes()))
    except (OSError, ValueError) as error:
        kind = "init" if path.name == "ca.crt" else "node"
        raise ConfigError(
            f"{path.name}: no certificate to read ({type(error).__name__}). Fix: fedray cluster certs {kind}"
        ) from error


def described(certificate: x509.Certificate) -> Certificate:
    """Return what a certificate says, in plain values."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = tuple(str(address) for address in found.get_values_for_type(x509.IPAddress))
        names = tuple(found.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        addresses, names = (), ()
    digest = certificate.fingerprint(hashes.SHA256())
    return Certificate(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial=f"{certificate.serial_number:x}",
        starts=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
        addresses=addresses,
        names=names,
        fingerprint=digest.hex(),
    )


def is_signed_by(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> bool:
    """Tell whether one of the authorities has signed a certificate."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def authorities_of(credentials: Credentials) -> list[x509.Certificate]:
    """Return the authorities that are trusted here. Raises ConfigError where the file cannot be read."""
    try:
        return x509.load_pem_x509_certificates((credentials.authority or Path()).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"RAY_TLS_CA_CERT cannot be read ({type(error).__name__}). Fix: {TLS_FIX}"
        ) from error


def examine(credentials: Credentials, addresses: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield what is wrong with the credentials here; `addresses` are those that others call this node at."""
    yield _token_here(credentials)
    if not credentials.uses_tls:
        yield Finding("tls", FAIL, "RAY_USE_TLS is not set: what nodes send each other can be read", TLS_FIX)
        return
    yield from _certificate_here(credentials, addresses)


def _token_here(credentials: Credentials) -> Finding:
    if not credentials.uses_token:
        return Finding(
            "token", FAIL, "RAY_AUTH_MODE is not 'token': who reaches a node may run code on it", TOKEN_FIX
        )
    if credentials.token is None:
        return Finding("token", FAIL, credentials.token_problem, TOKEN_FIX)
    if (mode := _open_to_others(credentials.token_file)) is not None:
        return Finding(
            "token",
            FAIL,
            f"others on this machine may read its file (mode {mode})",
            'chmod 600 "$RAY_AUTH_TOKEN_PATH"',
        )
    where = "a file of its owner alone" if credentials.token_file else "RAY_AUTH_TOKEN"
    return Finding("token", PASS, f"set, from {where}")


def _open_to_others(path: Path | None) -> str | None:
    """Return a file's mode where others than its owner may read or write it."""
    if path is None or os.name == "nt":
        return None
    mode = stat.S_IMODE(path.stat().st_mode)
    return f"{mode:04o}" if mode & 0o077 else None


def _certificate_here(credentials: Credentials, addresses: Sequence[str]) -> Iterator[Finding]:
    loaded = _loaded(credentials)
    if isinstance(loaded, Finding):
        yield loaded
        return
    certificate, authorities = loaded
    found = described(certificate)
    wrong = [
        *times("the certificate here", found),
        *_names_here(found, addresses),
    ]
    if not is_signed_by(certificate, authorities):
        wrong.append(
            Finding(
                "tls",
                FAIL,
                f"the certificate here is signed by {found.issuer}, not by the authority of RAY_TLS_CA_CERT",
                "copy node.crt, node.key and ca.crt of one authority to this node",
            )
        )
    if (mode := _open_to_others(credentials.key)) is not None:
        wrong.append(
            Finding(
                "tls",
                FAIL,
                f"others on this machine may read the key (mode {mode})",
                'chmod 600 "$RAY_TLS_SERVER_KEY"',
            )
        )
    yield from wrong
    if not any(finding.status == FAIL for finding in wrong):
        yield Finding(
            "tls", PASS, f"certificate {found.subject}, {found.days_left} days left, key and authority fit"
        )


def _loaded(credentials: Credentials) -> tuple[x509.Certificate, list[x509.Certificate]] | Finding:
    """Return certificate and authorities, or what keeps them from being read."""
    named = {
        "RAY_TLS_SERVER_CERT": credentials.certificate,
        "RAY_TLS_SERVER_KEY": credentials.key,
        "RAY_TLS_CA_CERT": credentials.authority,
    }
    if missing := [name for name, path in named.items() if path is None or not path.is_file()]:
        return Finding("tls", FAIL, f"{', '.join(missing)}: not set, or no such file", TLS_FIX)
    contents: dict[str, bytes] = {}
    try:
        contents = {name: path.read_bytes() for name, path in named.items() if path is not None}
        certificate = x509.load_pem_x509_certificate(contents["RAY_TLS_SERVER_CERT"])
        key = serialization.load_pem_private_key(contents["RAY_TLS_SERVER_KEY"], password=None)
        authorities = x509.load_pem_x509_certificates(contents["RAY_TLS_CA_CERT"])
    except (OSError, ValueError, TypeError) as error:
        return Finding(
            "tls", FAIL, f"a file of the certificate cannot be read ({type(error).__name__})", TLS_FIX
        )
    if key.public_key() != certificate.public_key():
        return Finding(
            "tls",
            FAIL,
            "RAY_TLS_SERVER_KEY is not the key of RAY_TLS_SERVER_CERT",
            "copy node.crt and node.key of one folder to this node",
        )
    return certificate, authorities


def times(whose: str, found: Certificate) -> Iterator[Finding]:
    """Yield what is wrong with a certificate's validity, or will soon be."""
    now = dt.datetime.now(dt.UTC)
    renew = "fedray cluster certs node NAME --renew, copy it to the node, and start Ray there again"
    if found.ends < now:
        yield Finding("tls", FAIL, f"{whose} ended on {found.ends:%Y-%m-%d %H:%M} UTC", renew)
    elif found.starts > now:
        yield Finding(
            "tls",
            FAIL,
            f"{whose} starts on {found.starts:%Y-%m-%d %H:%M} UTC, after what the clock here says",
            "set the clock: timedatectl set-ntp true",
        )
    elif found.days_left < ENDS_SOON_DAYS:
        yield Finding("tls", NOTE, f"{whose} ends in {found.days_left} days", renew)


def _names_here(found: Certificate, addresses: Sequence[str]) -> Iterator[Finding]:
    missing = [host for host in (*addresses, "127.0.0.1", "localhost") if not found.is_for(host)]
    if missing:
        yield Finding(
            "tls",
            FAIL,
            f"the certificate here does not name {', '.join(missing)}, and others call this node so",
            " ".join(["fedray cluster certs node NAME --renew", *(f"--ip {host}" for host in addresses)]),
        )
