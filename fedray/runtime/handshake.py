"""Knock at a port: does it answer, does it speak TLS, and do its certificate and ours suit each other?

Every step has a limit in seconds. Ray only says "timed out" where a handshake fails; this says what failed.
"""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509

from fedray.errors import ConfigError
from fedray.runtime.credentials import (
    Credentials,
    authorities_of,
    described,
    is_signed_by,
    times,
)
from fedray.runtime.findings import FAIL, Finding

LIMIT_S = 3.0
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # preface, empty settings


@dataclass(frozen=True, slots=True)
class Answer:
    """What a port said to a TLS greeting."""

    speaks_tls: bool
    certificate: x509.Certificate | None = None
    refusal: str = ""  # why it closed the connection; empty where it went on


def parse(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT or [HOST]:PORT. Raises ConfigError on anything else."""
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"{address!r} is no address of a Ray cluster. Fix: HOST:PORT of its head, such as 10.0.0.1:6379"
        )
    return host, int(port)


def greet(host: str, port: int, credentials: Credentials | None, limit_s: float = LIMIT_S) -> Answer:
    """Greet a port in TLS, with our certificate or without, and wait for its first word."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = (
        False,
        ssl.CERT_NONE,
    )  # looked at below, to name what is wrong
    context.set_alpn_protocols(["h2"])
    if credentials is not None:
        context.load_cert_chain(str(credentials.certificate), str(credentials.key))
    certificate = None
    try:
        with (
            socket.create_connection((host, port), limit_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as talk,
        ):
            if (der := talk.getpeercert(binary_form=True)) is not None:
                certificate = x509.load_der_x509_certificate(der)
            talk.sendall(HTTP2)
            return Answer(True, certificate, "" if talk.recv(1) else "it closed the connection")
    except ssl.SSLError as error:
        # an alert is an answer in TLS; anything else before a certificate is not TLS at all
        return Answer(certificate is not None or "ALERT" in str(error.reason), certificate, str(error.reason))
    except OSError as error:
        return Answer(certificate is not None, certificate, type(error).__name__)


def shake(host: str, port: int, credentials: Credentials, whose: str) -> Iterator[Finding]:
    """Yield what keeps this process and a port from talking, as far as TLS goes; nothing where all is well.

    `whose` is how the port is called in a message, such as "the head".
    """
    answer = greet(host, port, credentials if credentials.uses_tls else None)
    if answer.refusal == TimeoutError.__name__ and (credentials.uses_tls or answer.speaks_tls):
        yield Finding(
            "tls",
            FAIL,
            f"{whose} takes connections and says nothing for {LIMIT_S:.0f} s",
            "Ray hangs or is stopped there: look at its processes, and start it again",
        )
        return
    if not credentials.uses_tls:
        if answer.speaks_tls:
            yield Finding(
                "tls",
                FAIL,
                f"{whose} asks for TLS, and RAY_USE_TLS is not set here",
                "export RAY_USE_TLS=1 and the three RAY_TLS_ files of a certificate of its authority",
            )
        return
    if not answer.speaks_tls:
        yield Finding(
            "tls",
            FAIL,
            f"{whose} speaks no TLS ({answer.refusal}), and RAY_USE_TLS=1 is set here",
            "stop Ray there, export RAY_USE_TLS=1 and the three RAY_TLS_ files, and start it again",
        )
        return
    wrong = [] if answer.certificate is None else list(_theirs(host, answer.certificate, credentials, whose))
    yield from wrong
    if answer.refusal and not wrong:
        yield Finding(
            "tls",
            FAIL,
            f"{whose} refuses the certificate here ({answer.refusal})",
            "compare the authority on both sides: fedray cluster certs show",
        )


def _theirs(
    host: str, certificate: x509.Certificate, credentials: Credentials, whose: str
) -> Iterator[Finding]:
    found, authorities = described(certificate), authorities_of(credentials)
    if not is_signed_by(certificate, authorities):
        ours = " or ".join(authority.subject.rfc4514_string() for authority in authorities)
        yield Finding(
            "tls",
            FAIL,
            f"{whose} shows a certificate of another authority ({found.issuer}; here {ours} is trusted)",
            "give every node a certificate of one authority: fedray cluster certs node NAME --ip ADDRESS",
        )
        return
    yield from times(f"the certificate of {whose}", found)
    if not found.is_for(host):
        yield Finding(
            "tls",
            FAIL,
            f"the certificate of {whose} does not name {host} (it names {found.told_hosts})",
            f"fedray cluster certs node NAME --renew --ip {host}, copy it there, and start Ray again",
        )


def own_address(host: str) -> bool:
    """Tell whether an address is one of this machine's."""
    with contextlib.suppress(OSError):
        family, kind, protocol, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(where)
            return True
    return False
