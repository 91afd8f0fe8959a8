"""As much of Google Cloud Storage's JSON interface on loopback as a client needs to put and get objects."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "hospital"
OBJECT = re.compile(rf"/storage/v1/b/{BUCKET}/o/(.+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, code: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def _told(self, name: str) -> dict[str, Any]:
        return {"kind": "storage#object", "bucket": BUCKET, "name": name, "id": name, "generation": "1",
                "size": str(len(self.server.objects[name])), "timeCreated": "2026-01-01T00:00:00.000Z",
                "updated": "2026-01-01T00:00:00.000Z"}  # fmt: skip

    def _missing(self) -> None:
        self._answer(404, {"error": {"code": 404, "message": "Not Found"}})

    def do_GET(self) -> None:
        parts, objects = urlsplit(self.path), self.server.objects
        words = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path == f"/storage/v1/b/{BUCKET}/o":
            prefix, mark = words.get("prefix", ""), words.get("delimiter")
            names = [name for name in sorted(objects) if name.startswith(prefix)]
            deep = {name for name in names if mark and mark in name[len(prefix) :]}
            prefixes = sorted({prefix + name[len(prefix) :].split(mark)[0] + mark for name in deep})
            items = [self._told(name) for name in names if name not in deep]
            self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": prefixes})
            return
        if parts.path == f"/storage/v1/b/{BUCKET}":
            self._answer(200, {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET})
            return
        found = OBJECT.fullmatch(parts.path) or re.fullmatch(rf"/{BUCKET}/(.+)", parts.path)
        name = unquote(found.group(1)) if found else ""
        if name not in objects:
            self._missing()
        elif words.get("alt") == "media" or not parts.path.startswith("/storage"):
            self._media(objects[name])
        else:
            self._answer(200, self._told(name))

    def _media(self, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(200, data)
            return
        first, last = int(asked.group(1)), int(asked.group(2) or len(data) - 1)
        part = data[first : last + 1]
        told = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        self._answer(206 if part else 416, part, Content_Range=told)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def do_POST(self) -> None:
        body, parts = self._body(), urlsplit(self.path)
        words = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if words.get("uploadType") == "resumable":
            name = words.get("name") or json.loads(body)["name"]
            number = str(len(self.server.uploads))
            self.server.uploads[number] = (name, b"")
            self._answer(200, Location=f"http://{self.headers['Host']}/upload/{number}")
            return
        if words.get("uploadType") == "multipart":
            mark = b"--" + self.headers["Content-Type"].split("boundary=")[1].strip('"').encode()
            _, told, media = body.split(mark)[:3]
            name = words.get("name") or json.loads(told.partition(b"\r\n\r\n")[2])["name"]
            body = media.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        else:
            name = words["name"]
        self.server.objects[name] = body
        self._answer(200, self._told(name))

    def do_PUT(self) -> None:
        body, number = self._body(), self.path.rpartition("/")[2]
        name, before = self.server.uploads[number]
        data = before + body
        self.server.uploads[number] = (name, data)
        total = self.headers.get("Content-Range", "").rpartition("/")[2]
        if total == "*":
            self._answer(308, Range=f"bytes=0-{len(data) - 1}")
            return
        self.server.objects[name] = data
        self._answer(200, self._told(name))

    def do_DELETE(self) -> None:
        found = OBJECT.fullmatch(urlsplit(self.path).path)
        name = unquote(found.group(1)) if found else ""
        if self.server.objects.pop(name, None) is None:
            self._missing()
        else:
            self._answer(204)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}


@contextlib.contextmanager
def service() -> Iterator[str]:
    """Serve an empty bucket in a process of its own; return its address. pyarrow reads with Python's lock
    held, so that no thread of this process could answer it.
    """
    words = [sys.executable, "-m", "tests.cluster.gcs"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    with Server() as server:
        print(server.server_port, flush=True)
        server.serve_forever()
