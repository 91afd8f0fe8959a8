"""Folders as stores: what is written is whole, what fails leaves nothing, and the message says what to do."""

import os
import resource
import subprocess
import sys

import pytest

from fedray.errors import ConfigError, StorageError
from fedray.runtime.storage import Folder, below, check_store, open_store, tries
from tests.unit.disks import fill, small_disk

FOLDERS_OWN = """
import resource, sys
from fedray.errors import StorageError
from fedray.runtime.storage import Folder
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    Folder(sys.argv[1]).write("big", bytes(5000))
except StorageError as error:
    print(error)
"""


def test_what_is_written_is_read_and_listed_and_takes_the_place_of_what_was_there(tmp_path):
    store = open_store(tmp_path / "new" / "folder")
    assert store.names() == []
    store.write("b", b"1")
    store.write("a", b"2")
    store.write("b", b"3")
    assert store.names() == ["a", "b"] and store.read("b") == b"3"
    store.remove("b")
    store.remove("b")
    with pytest.raises(FileNotFoundError):
        store.read("b")


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_write_returns(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def synced(file):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{file}") else "file")
        sync(file)

    def replaced(*names):
        done.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    Folder(tmp_path).write("a", b"1")
    assert done == ["file", "rename", "folder"]


def test_full_disk_leaves_what_was_there_and_says_how_much_is_free(tmp_path):
    with small_disk(tmp_path / "disk", 256) as folder:
        store = Folder(folder)
        store.write("a", b"before")
        fill(folder, leaving=8192)
        with pytest.raises(StorageError) as caught:
            store.write("a", bytes(100_000))
        assert store.read("a") == b"before"
        assert sorted(os.listdir(folder)) == ["a", "filler"]
        for text in (f"{folder}/a", "No space left on device", "8192 bytes are free", "100000", "Fix: free"):
            assert text in str(caught.value)


def test_limit_of_a_files_size_is_said_and_nothing_stays(tmp_path):
    ran = subprocess.run([sys.executable, "-c", FOLDERS_OWN, str(tmp_path)], capture_output=True, text=True,
                         check=True)  # fmt: skip
    assert f"{tmp_path}/big cannot be written (File too large" in ran.stdout
    assert os.listdir(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_line_that_does_not_fit_is_not_there_in_part(tmp_path):
    with small_disk(tmp_path / "disk", 64) as folder:
        store = Folder(folder)
        store.append("lines", b"first")
        filler = fill(folder, leaving=4096)
        with pytest.raises(StorageError, match="added to"):
            store.append("lines", bytes([65]) * 20_000)
        assert store.read("lines") == b"first\n"
        filler.unlink()
        store.append("lines", b"second")
        assert store.lines("lines") == [b"first", b"second"]


def test_line_without_its_end_is_cut_off_and_half_written_files_are_swept(tmp_path):
    (tmp_path / "lines").write_bytes(b"one\ntw")
    (tmp_path / f"server-3.json.1234{'.part'}").write_bytes(b"half")
    store = Folder(tmp_path)
    assert store.names() == ["lines"] and store.lines("lines") == [b"one"]
    store.sweep()
    assert os.listdir(tmp_path) == ["lines"]


@pytest.mark.parametrize(("address", "said"), [
    ("ftp://host/folder", "s3://BUCKET/PREFIX"),
    ("s3://", "bucket and a prefix"),
    ("s3://KEY:SECRET@bucket/prefix", "environment"),
    ("s3://bucket/prefix?endpoint_override=x", "environment"),
])  # fmt: skip
def test_address_that_cannot_be_is_refused_and_its_keys_are_not_repeated(address, said):
    with pytest.raises(ConfigError, match=said) as caught:
        open_store(address)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://10.0.0.5:9000", "http://storage.hospital.example"])
def test_plain_http_over_a_network_is_refused(monkeypatch, url):
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(ConfigError, match="unencrypted. Fix: https://"):
        open_store("s3://bucket/prefix")


def test_place_that_cannot_be_written_to_is_found_before_anything_is_done(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written .*Fix"):
        check_store(open_store(tmp_path / "file"))


def test_address_below_another_has_one_slash():
    assert below("s3://bucket/a/", "b") == "s3://bucket/a/b" and below("runs/x", "b") == "runs/x/b"


def test_tries_end_when_patience_is_over(monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    assert len(list(tries(0.0))) == 1
    assert len(list(tries(40.0))) == len(slept) + 1 and sum(slept) == 40.0 and max(slept) == 15.0
