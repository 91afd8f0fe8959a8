"""Download open data from its publisher, with checksum and resume, for people who are online.

Start reading at `get`. A file grows under `<name>.part` and takes its name when its SHA-256 is right; a
connection that breaks off goes on where it stopped, in this call or the next. Proxies are those of the
environment (`https_proxy`, `no_proxy`). Checksums are pinned here, or are the list that the publisher keeps
beside the files.
"""

import http.client
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urljoin

from fedray.data.contract import near
from fedray.data.folder import hash_file
from fedray.errors import DataError

TIMEOUT_S = 30
_BLOCK = 1 << 16
_BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)  # what a retry may mend
_AGAIN = (408, 429, 500, 502, 503, 504)
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a data set comes from: the folder's address, its files and their SHA-256.

    `sha256` pins checksums; `sums` names the publisher's own list ("<sha256> <file>" a line) for those not
    pinned, in which names are looked up without regard to case.
    """

    address: str
    files: tuple[str, ...]
    licence: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    sums: str = ""


ORIGINS: Mapping[str, Origin] = {
    "eicu-demo": Origin(
        address="https://physionet.org/files/eicu-crd-demo/2.0.1/", sums="SHA256SUMS.txt",
        licence="Open Database License 1.0 (PhysioNet, eICU Collaborative Research Database Demo 2.0.1)",
        files=tuple(f"{table}.csv.gz" for table in (
            "patient", "hospital", "apacheApsVar", "apachePredVar", "apachePatientResult", "lab",
            "vitalPeriodic", "vitalAperiodic", "intakeOutput"))),
    "heart-disease": Origin(
        address="https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/",
        licence="CC BY 4.0 (UCI Heart Disease: Janosi, Steinbrunn, Pfisterer, Detrano, doi 10.24432/C52P4X)",
        files=("processed.cleveland.data", "processed.hungarian.data", "processed.switzerland.data",
               "processed.va.data"),
        sha256={
            "processed.cleveland.data": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
            "processed.hungarian.data": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
            "processed.switzerland.data": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
            "processed.va.data": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f"}),
}


def get(name: str, out: str | Path, *, origins: Mapping[str, Origin] = ORIGINS, tries: int = 5,
        wait_s: float = 1.0, say: Callable[[str], None] = _log.info) -> Path:
    """Download a data set into the folder `out` and return it; files that are there and whole are left alone.

    `tries` connections are made per file without progress before giving up, `wait_s` doubling between them.
    Raises: DataError for an unknown name, no connection, a file that the publisher lacks, or a wrong
    checksum.
    """
    if name not in origins:
        raise DataError(f"data get: there is no data set {name!r}{near(name, origins)}. Fix: one of "
                        f"{', '.join(origins)}")
    origin, out = origins[name], Path(out)
    if out.exists() and not out.is_dir():
        raise DataError(f"data get: {out} is a file. Fix: give a folder as --out")
    say(f"{name}: {origin.licence}")
    listed = _checksums(origin, tries, wait_s)
    for file in origin.files:
        address, sha256 = listed[file]
        path = out / file
        if path.is_file() and hash_file(path) == sha256:
            say(f"{file}: already there")
            continue
        _fetch(address, path, sha256, tries, wait_s)
        say(f"{file}: {path.stat().st_size:,} bytes, checksum right")
    return out


def _checksums(origin: Origin, tries: int, wait_s: float) -> dict[str, tuple[str, str]]:
    """Return address and SHA-256 of each file."""
    names = {file.lower(): (file, digest) for file, digest in origin.sha256.items()}
    if origin.sums:
        address = urljoin(origin.address, origin.sums)
        text = _retry(address, tries, wait_s, lambda: _open(address).read())
        for line in text.decode("utf-8", "replace").splitlines():
            digest, _, file = line.strip().partition(" ")
            if len(digest) == 64:
                names.setdefault(file.strip().lstrip("*").lower(), (file.strip().lstrip("*"), digest.lower()))
    lacking = [file for file in origin.files if file.lower() not in names]
    if lacking:
        raise DataError(f"data get: {urljoin(origin.address, origin.sums)} does not list "
                        f"{', '.join(lacking)}. Fix: look whether the publisher has a newer version, and "
                        "download by hand")
    found = {file: names[file.lower()] for file in origin.files}
    return {file: (urljoin(origin.address, quote(name)), sha256) for file, (name, sha256) in found.items()}


def _fetch(address: str, path: Path, sha256: str, tries: int, wait_s: float) -> None:
    """Bring one file to its place; a part that turns out wrong is fetched once more from nothing."""
    part = path.with_name(path.name + ".part")
    for _ in range(2):
        had_part = part.exists()
        _retry(address, tries, wait_s, lambda: _go_on(address, part), lambda: _size(part))
        if hash_file(part) == sha256:
            part.replace(path)
            return
        part.unlink()
        if not had_part:
            break
    raise DataError(f"data get: {address} has another SHA-256 than expected, {path.name} was not kept. Fix: "
                    "try again later; if it stays, the publisher changed the file: compare with its page "
                    "before using it")


def _go_on(address: str, part: Path) -> None:
    """Fetch what a part lacks, or all of it where the server cannot continue."""
    have = _size(part)
    with _open(address, have) as reply:
        goes_on = reply.status == 206
        part.parent.mkdir(parents=True, exist_ok=True)
        length = reply.headers.get("Content-Length")
        got = 0
        with open(part, "ab" if goes_on else "wb") as stream:
            while block := reply.read(_BLOCK):
                stream.write(block)
                got += len(block)
    if length is not None and got < int(length):
        raise http.client.IncompleteRead(b"", int(length) - got)


def _open(address: str, start: int = 0) -> http.client.HTTPResponse:
    """Open an address from a byte on; a part that is whole or too long already (416) starts again."""
    request = urllib.request.Request(address, headers={"User-Agent": "fedray", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        reply: http.client.HTTPResponse = urllib.request.build_opener().open(request, timeout=TIMEOUT_S)
        return reply  # an opener of its own: the shared one keeps the proxies of its first use
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            return _open(address)
        raise


def _retry(address: str, tries: int, wait_s: float, act: Callable[[], T],
           progress: Callable[[], int] = lambda: 0) -> T:
    """Call `act` until it succeeds; give up after `tries` failures in a row without progress."""
    failures, before = 0, progress()
    while True:
        try:
            return act()
        except urllib.error.HTTPError as error:
            if error.code not in _AGAIN:
                raise DataError(f"data get: {address} answered {error.code} {error.reason}. Fix: look "
                                "whether the publisher moved it, and download by hand") from None
            problem = f"answered {error.code}"
        except urllib.error.URLError as error:
            problem = f"cannot be reached ({error.reason})"
        except _BROKEN as error:
            problem = f"broke off ({type(error).__name__})"
        except OSError as error:
            raise DataError(f"data get: the file cannot be written ({error.strerror}). Fix: give a folder "
                            "with room that you may write to as --out") from None
        failures = 1 if progress() > before else failures + 1
        before = progress()
        if failures >= tries:
            raise DataError(f"data get: {address} {problem}, {tries} times without progress. Fix: check the "
                            "network, set https_proxy where one is needed, and run it again: it goes on "
                            "where it stopped")
        _log.debug("%s %s; trying again", address, problem)
        time.sleep(wait_s * 2 ** (failures - 1))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
