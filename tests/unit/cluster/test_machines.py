"""What nodes lack as machines: each lack names its node and its fix, what all have is one line."""

import errno
import os

import pytest

from fedray.cluster import machines
from fedray.runtime import node_probe
from fedray.runtime.findings import FAIL, NOTE, PASS
from fedray.runtime.ray_gcs import Node
from fedray.runtime.ray_nodes import offset

NODES = [Node(name, address, 1, 2, {"fedray.site": name}, name == "head")
         for name, address in (("head", "10.0.0.1"), ("h001", "10.0.0.2"))]  # fmt: skip
FINE = {
    "disk_free": 9 * machines.GIB,
    "shared": (2 * machines.GIB, machines.GIB),
    "open_files": (20000, 20000),
    "other_rays": 0,
    "reports_usage": False,
    "credentials": [],
    "unread": {},
}


def found(**other):
    return list(machines.examine(NODES, {"head": FINE, "h001": {**FINE, **other}}))


def test_machines_that_have_all_give_one_line_a_check():
    assert [(each.check, each.status) for each in found()] == [
        ("disk", PASS), ("shared memory", PASS), ("open files", PASS)]  # fmt: skip


@pytest.mark.parametrize(("other", "check", "message"), [
    ({"disk_free": machines.GIB}, "disk", "10.0.0.2 (h001): 1.0 GiB free in Ray's folder, 2.0 GiB wanted"),
    ({"disk_free": machines.DISK - 4 * 2**20}, "disk", "10.0.0.2 (h001): 1.996 GiB free in Ray's folder"),
    ({"disk_free": machines.DISK - 1}, "disk", "10.0.0.2 (h001): 2147483647 B free in Ray's folder, 2.0 GiB"),
    ({"disk_free": None, "unread": {"disk_free": "FileNotFoundError"}}, "disk",
     "10.0.0.2 (h001): Ray's folder cannot be looked at (FileNotFoundError)"),
    ({"unread": {"credentials": "PermissionError"}}, "token",
     "10.0.0.2 (h001): its token or certificate cannot be looked at (PermissionError)"),
    ({"shared": (64 * 2**20, 64 * 2**20)}, "shared memory", "10.0.0.2 (h001): /dev/shm has 0.1 GiB of"),
    ({"open_files": (1024, 20000)}, "open files", "10.0.0.2 (h001): a process may have 1024 files open"),
])  # fmt: skip
def test_node_that_lacks_something_is_named(other, check, message):
    (finding,) = [each for each in found(**other) if each.status == FAIL]
    assert finding.check == check and finding.message.startswith(message) and finding.fix


def test_limit_that_does_not_exist_and_memory_that_is_not_used_pass():
    assert all(each.status == PASS for each in found(open_files=(-1, -1), shared=None))


def test_other_ray_is_a_note_and_what_a_node_says_of_its_own_token_is_kept():
    own = [("token", FAIL, "others on this machine may read its file (mode 0644)", "chmod")]
    assert [each.status for each in found(other_rays=1) if each.check == "other Ray"] == [NOTE]
    (finding,) = [each for each in found(credentials=own) if each.status == FAIL]
    assert finding.message == "10.0.0.2 (h001): others on this machine may read its file (mode 0644)"


def test_usage_reports_matter_at_the_head_which_sends_them():
    assert not [each for each in found(reports_usage=True) if each.check == "telemetry"]
    looked = {"head": {**FINE, "reports_usage": True}, "h001": FINE}
    (finding,) = [each for each in machines.examine(NODES, looked) if each.check == "telemetry"]
    assert finding.status == FAIL and "RAY_USAGE_STATS_ENABLED=0" in finding.fix


def test_offset_is_taken_at_the_middle_and_doubted_by_half_of_the_exchange():
    assert offset(100.0, 105.5, 101.0) == (5.0, 0.5)


def test_clock_is_off_where_the_doubt_does_not_explain_it():
    skews = {"head": (1.4, 0.5), "h001": (-3.0, 0.5)}
    (finding,) = machines.clocks(NODES, skews)
    assert finding.status == FAIL
    assert finding.message == "10.0.0.2 (h001): 3.0 s behind this machine's, 1 s is tolerated"


def test_clocks_that_agree_are_one_line_with_the_worst_of_them():
    (finding,) = machines.clocks(NODES, {"head": (0.0, 0.001), "h001": (-0.020, 0.005)})
    assert finding.status == PASS and finding.message.startswith("within 25 ms of this machine's")


def test_only_a_count_of_a_folder_is_returned(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDRAY_SITE_DATA", raising=False)
    (tmp_path / "patient").write_text("4711")
    assert node_probe.count_entries("h001", str(tmp_path)) == 1
    assert node_probe.count_entries("h001", str(tmp_path / "none")) == "missing"
    assert node_probe.count_entries("h001", None) == "unsaid"
    monkeypatch.setenv("FEDRAY_SITE_DATA", str(tmp_path))
    (tmp_path / "h002").mkdir()
    assert [node_probe.count_entries(site, None) for site in ("h001", "h002")] == [2, 0]


def test_folder_that_the_user_may_not_read_is_told_from_one_that_is_not_there(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert node_probe.count_entries("h001", str(tmp_path)) == "unreadable"
    monkeypatch.setattr(os, "listdir", refuse)
    assert node_probe.count_entries("h001", str(tmp_path)) == "unreadable"
    monkeypatch.setattr(os, "stat", refuse)
    assert node_probe.count_entries("h001", str(tmp_path)) == "unreadable"


def test_folder_whose_file_system_fails_is_no_answer_that_fails(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "listdir", fail)
    assert node_probe.count_entries("h001", str(tmp_path)) == "failing"


def test_figure_that_the_system_does_not_give_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    told = node_probe.look("", "10.0.0.2", {})
    assert told["unread"] == {"disk_free": "FileNotFoundError"} and told["disk_free"] is None
    assert told["open_files"] and told["user"]


def test_digest_of_the_source_changes_with_a_file(tmp_path, monkeypatch):
    import fedray

    package = tmp_path / "fedray"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(fedray, "__file__", str(package / "__init__.py"))
    first = node_probe.fedray_code()
    (package / "more.py").write_text("x = 1\n")
    assert node_probe.fedray_code()[0] == first[0] and node_probe.fedray_code()[1] != first[1]
