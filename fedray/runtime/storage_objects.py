"""Objects of S3 and of Google Cloud Storage as a store, through pyarrow.

Keys come from where the provider's own tools take them: the environment, the files in the home folder, or
the role of the machine; never from an address. `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` names another
service that speaks S3 (of one's own, or of a test), `STORAGE_EMULATOR_HOST` one for `gs://`. A put of an
object is whole or does not happen, and is not answered before it lasts.
"""

import ipaddress
import os
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from fedray.errors import ConfigError, StorageError

CONNECT_S = 5.0  # until a connection is there
REQUEST_S = 10.0  # that a request may stay without a byte
TRIES = 2  # of one request; 35 s in all, measured, for a service that takes it and never answers
PIECES = 64  # lines in objects of their own, from which they are put together
Answer = TypeVar("Answer")

FIXES = {  # what a service's answer holds: what mends it
    "NO_SUCH_BUCKET": "make the bucket, or mend its name",
    "ACCESS_DENIED": "give the key or the role the rights to list, get, put and delete there",
    "INVALID_ACCESS_KEY_ID": "mend the keys in the environment or the credentials file",
    "SIGNATURE_DOES_NOT_MATCH": "mend the keys in the environment or the credentials file",
    "PERMANENT_REDIRECT": "set AWS_REGION to the region of the bucket",
    "PermanentRedirect": "set AWS_REGION to the region of the bucket",
}
FIX = "see that the service can be reached from here, and that keys are set"


class Objects:
    """The objects under one prefix of a bucket, those in a deeper one left out."""

    def __init__(self, address: str) -> None:
        scheme, _, rest = address.partition("://")
        self.address, self.root = address.rstrip("/"), rest.strip("/")
        self._system = _s3() if scheme == "s3" else _gcs()
        self._last: dict[str, int] = {}  # of files of lines: the number of the last piece

    def names(self) -> list[str]:
        """Return the names of all objects, sorted."""
        selector = fs.FileSelector(self.root, allow_not_found=True)
        found = self._ask("listed", "", lambda: self._system.get_file_info(selector))
        return sorted(each.base_name for each in found if each.type == fs.FileType.File)

    def read(self, name: str) -> bytes:
        """Return an object's bytes. Raises FileNotFoundError where there is none."""
        return self._ask("read", name, lambda: self._read(name))

    def _read(self, name: str) -> bytes:
        with self._system.open_input_file(f"{self.root}/{name}") as file:
            return bytes(file.readall())

    def write(self, name: str, data: bytes) -> None:
        """Write an object whole, in place of one of that name."""
        self._ask("written", name, lambda: self._write(name, data))

    def _write(self, name: str, data: bytes) -> None:
        with self._system.open_output_stream(f"{self.root}/{name}") as file:
            file.write(data)

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is none to remove."""
        try:
            self._ask("removed", name, lambda: self._system.delete_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return

    def append(self, name: str, line: bytes) -> None:
        """Add a line to a file of lines: as an object of its own, for none can be added to."""
        if name not in self._last:
            self._count(name, self._pieces(name))
        self.write(f"{name}.{self._last[name] + 1:012d}", line + b"\n")
        self._last[name] += 1

    def lines(self, name: str) -> list[bytes]:
        """Return the lines that `append` has returned from; many are put together to one object."""
        pieces = self._pieces(name)
        try:
            found = self.read(name).splitlines()
        except FileNotFoundError:
            found = []
        found += [line for piece in pieces for line in self.read(piece).splitlines()]
        self._count(name, pieces)
        if len(pieces) > PIECES:
            self.write(name, b"".join(line + b"\n" for line in found))
            for piece in pieces:
                self.remove(piece)
        return found

    def sweep(self) -> None:
        """Do nothing: an object is whole or not there."""

    def _count(self, name: str, pieces: list[str]) -> None:
        self._last[name] = int(pieces[-1].rpartition(".")[2]) if pieces else 0

    def _pieces(self, name: str) -> list[str]:
        start = f"{name}."
        return [each for each in self.names() if each.startswith(start) and each[len(start) :].isdigit()]

    def _ask(self, what: str, name: str, ask: Callable[[], Answer]) -> Answer:
        try:
            return ask()
        except FileNotFoundError:
            if what == "written":  # the bucket itself
                raise self._failed(what, name, "NO_SUCH_BUCKET") from None
            raise
        except (OSError, pa.ArrowException) as error:
            raise self._failed(what, name, str(error)) from error

    def _failed(self, what: str, name: str, said: str) -> StorageError:
        said = " ".join(said.split())
        fix = next((fix for word, fix in FIXES.items() if word in said), FIX)
        place = f"{self.address}/{name}" if name else self.address
        return StorageError(f"{place} cannot be {what} ({said[:300]}). Fix: {fix}")


def _s3() -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    options: dict[str, Any] = {} if not endpoint else _of_endpoint(endpoint)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return fs.S3FileSystem(
        region=region,
        connect_timeout=CONNECT_S,
        request_timeout=REQUEST_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
        allow_delayed_open=True,  # a small object is then one request and not three
        **options,
    )


def _gcs() -> Any:
    from datetime import timedelta

    endpoint = os.environ.get("STORAGE_EMULATOR_HOST") or ""
    options: dict[str, Any] = {} if not endpoint else {**_of_endpoint(endpoint), "anonymous": True}
    return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=REQUEST_S), **options)


def _of_endpoint(url: str) -> dict[str, Any]:
    """Return the options for a service at another address. Raises ConfigError on plain HTTP over a network:
    site state would pass it unencrypted.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"the endpoint {url} of the store is no address. Fix: https://HOST:PORT")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ConfigError(
            f"the endpoint {url} of the store is plain HTTP, and what sites keep would cross the network "
            f"unencrypted. Fix: https://{parts.netloc}"
        )
    return {"endpoint_override": parts.netloc, "scheme": parts.scheme}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
