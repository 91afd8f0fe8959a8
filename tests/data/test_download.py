"""Downloads against an HTTP server on loopback that breaks off half-way."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fedray.data.download import ORIGINS, Origin, get
from fedray.errors import DataError

BODY = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves BODY, at most `limit` bytes a connection; keeps every request's Range."""

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        if self.path.endswith("SHA256SUMS.txt"):
            return self.reply(200, f"{SHA256}  Table.csv.gz\n".encode(), 0)
        if self.path.endswith("gone.csv"):
            return self.send_error(404)
        wanted = self.headers.get("Range") if server.ranges else None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(BODY):
            return self.send_error(416)
        return self.reply(206 if wanted else 200, server.body[start:], server.limit)

    def reply(self, status, body, limit):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:limit or None])
        self.close_connection = True

    def log_message(self, *args):
        pass


@contextmanager
def serve(limit=0, ranges=True, body=BODY):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.limit, server.ranges, server.body = [], limit, ranges, body
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def origin(server, **changes):
    return {"demo": Origin(**{"address": f"http://127.0.0.1:{server.server_port}/d/", "licence": "open",
                              "files": ("table.csv.gz",), "sha256": {"table.csv.gz": SHA256}, **changes})}


def test_a_broken_connection_goes_on_where_it_stopped(tmp_path):
    with serve(limit=400_000) as server:
        get("demo", tmp_path / "out", origins=origin(server), wait_s=0)
    assert (tmp_path / "out" / "table.csv.gz").read_bytes() == BODY
    assert [wanted for _, wanted in server.asked] == [None, "bytes=400000-", "bytes=800000-"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["table.csv.gz"]


def test_a_later_call_resumes_and_leaves_whole_files_alone(tmp_path):
    (tmp_path / "table.csv.gz.part").write_bytes(BODY[:1000])
    with serve() as server:
        get("demo", tmp_path, origins=origin(server))
        get("demo", tmp_path, origins=origin(server))
    assert [wanted for _, wanted in server.asked] == ["bytes=1000-"]


def test_a_server_without_ranges_starts_again(tmp_path):
    (tmp_path / "table.csv.gz.part").write_bytes(b"old")
    with serve(ranges=False) as server:
        get("demo", tmp_path, origins=origin(server))
    assert (tmp_path / "table.csv.gz").read_bytes() == BODY


@pytest.mark.parametrize("rest", [b"rubbish", b"x" * len(BODY)])
def test_a_wrong_part_is_fetched_again_from_nothing(tmp_path, rest):
    (tmp_path / "table.csv.gz.part").write_bytes(rest)
    with serve() as server:
        get("demo", tmp_path, origins=origin(server))
    assert (tmp_path / "table.csv.gz").read_bytes() == BODY


def test_a_wrong_checksum_keeps_no_file(tmp_path):
    with serve(body=BODY[::-1]) as server, pytest.raises(DataError, match="has another SHA-256 .*Fix: "):
        get("demo", tmp_path, origins=origin(server))
    assert list(tmp_path.iterdir()) == []


def test_the_publishers_list_gives_name_and_checksum(tmp_path):
    with serve() as server:
        get("demo", tmp_path, origins=origin(server, sha256={}, sums="SHA256SUMS.txt"))
    assert (tmp_path / "table.csv.gz").read_bytes() == BODY
    assert [path for path, _ in server.asked] == ["/d/SHA256SUMS.txt", "/d/Table.csv.gz"]


def test_a_proxy_of_the_environment_is_used(tmp_path, monkeypatch):
    with serve() as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        get("demo", tmp_path, origins=origin(server, address="http://data.example.org/d/"))
    assert server.asked == [("http://data.example.org/d/table.csv.gz", None)]


def test_no_connection_a_lost_file_and_an_unknown_name_say_what_to_do(tmp_path):
    with serve() as server:
        known = origin(server, files=("gone.csv",), sha256={"gone.csv": SHA256})
        with pytest.raises(DataError, match=r"gone.csv answered 404 .*Fix: "):
            get("demo", tmp_path / "out", origins=known)
    with pytest.raises(DataError, match="cannot be reached .*2 times.*https_proxy"):
        get("demo", tmp_path / "out", origins=known, tries=2, wait_s=0)
    with pytest.raises(DataError, match=r"'eicu-dem' \(did you mean eicu-demo\?\)"):
        get("eicu-dem", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_shipped_origins_have_a_checksum_for_every_file():
    assert all(one.sums or set(one.files) == set(one.sha256) for one in ORIGINS.values())
    assert all(one.address.startswith("https://") and one.address.endswith("/") for one in ORIGINS.values())
