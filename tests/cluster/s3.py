"""An S3 service on loopback, in a process of its own, and a door before it that can be shut."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

BUCKET = "hospital"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # fmt: skip
START_S = 60.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Service:
    """The service: its address for clients, which is the door's, and its process."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process, self.port = process, port
        self.door = Door(port)
        self.url = f"http://127.0.0.1:{self.door.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it, with keys."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.url}

    def client(self):
        """Return a client of another make, which passes no door."""
        import boto3

        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1",
                            aws_access_key_id="test", aws_secret_access_key="test")  # fmt: skip

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """Let the process take connections and answer none."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


class Door:
    """Pass bytes on to a port while it is open; while it is shut, refuse who comes and drop who is there."""

    def __init__(self, target: int) -> None:
        self.target, self.is_open = target, True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._inside: set[socket.socket] = set()
        threading.Thread(target=self._let_in, daemon=True).start()

    def shut(self) -> None:
        self.is_open = False
        self._drop()

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.shut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _drop(self) -> None:
        for each in list(self._inside):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _let_in(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                if not self.is_open:
                    here.close()
                    continue
                there = socket.create_connection(("127.0.0.1", self.target))
                self._inside |= {here, there}
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._inside -= {source, target}


@contextlib.contextmanager
def service() -> Iterator[Service]:
    """Start it with an empty bucket, and end it."""
    port = free_port()
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, **KEYS})  # fmt: skip
    found = Service(process, port)
    try:
        _wait(process, port)
        found.client().create_bucket(Bucket=BUCKET)
        yield found
    finally:
        found.door.close()
        process.kill()
        process.wait()


def _wait(process: "subprocess.Popen[bytes]", port: int) -> None:
    limit = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < limit:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
            return
        time.sleep(0.05)
    raise AssertionError(f"the S3 service did not start (exit code {process.poll()})")
