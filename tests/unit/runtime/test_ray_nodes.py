"""What answers of nodes come to: versions that differ, data that a node's user may not read. Without Ray."""

import platform

import pytest

from fedray.runtime import node_probe, ray_door, ray_nodes
from fedray.runtime.findings import FAIL, NOTE, PASS
from fedray.runtime.ray_gcs import Node
from fedray.runtime.versions import MATCH_LEVEL

DOOR = ray_door.Door("10.0.0.1:6379", (Node("h", "10.0.0.2", 1, 2, {"fedray.site": "h001"}, False),))
OTHER_PATCH = ".".join(platform.python_version_tuple()[:2]) + ".999"


def answer(**other):
    same = {"ray": node_probe.ray_version(), "python": platform.python_version(), "unread": {}, "folders": {},
            "fedray": node_probe.fedray_code(), "user": "fedray (uid 998)"}  # fmt: skip
    return {"h": {**same, **other}}


def statuses(looked, **environment):
    return [each.status for each in ray_nodes.versions(DOOR, looked, environment)]


def test_another_patch_level_of_python_is_noted_where_ray_is_told_to_take_it():
    looked = answer(python=OTHER_PATCH)
    assert statuses(looked, **{MATCH_LEVEL: "minor"}) == [NOTE, PASS]
    assert statuses(looked) == [FAIL]
    (found,) = ray_nodes.versions(DOOR, looked, {})
    assert f"export {MATCH_LEVEL}=minor" in found.fix


def test_level_of_python_lets_neither_another_minor_version_nor_another_fedray_in():
    assert statuses(answer(python="3.1.0"), **{MATCH_LEVEL: "minor"}) == [FAIL]
    looked = answer(python=OTHER_PATCH, fedray=("0.0.1", "x"))
    assert statuses(looked, **{MATCH_LEVEL: "minor"}) == [NOTE, FAIL]


def test_files_of_fedray_that_cannot_be_read_are_told_from_none():
    looked = answer(fedray=("", ""), unread={"fedray": "PermissionError"})
    (found,) = ray_nodes.versions(DOOR, looked, {})
    assert found.status == FAIL and "the files of fedray cannot be read (PermissionError)" in found.message


@pytest.mark.parametrize(("told", "message"), [
    ("unreadable", "site h001 on 10.0.0.2 (h001): the user fedray (uid 998) there may not read its data"),
    ("failing", "site h001 on 10.0.0.2 (h001): the file system there fails to read its data"),
    ("missing", "site h001 on 10.0.0.2 (h001): its data folder is not there"),
    (0, "site h001 on 10.0.0.2 (h001): its data folder is empty"),
])  # fmt: skip
def test_data_that_cannot_be_used_are_a_failure_of_their_own(told, message):
    (found,) = ray_nodes.data(DOOR, answer(folders={"h001": told}), {"h001": None})
    assert (found.status, found.message) == (FAIL, message) and found.fix


def test_data_that_are_there_pass():
    (found,) = ray_nodes.data(DOOR, answer(folders={"h001": 3}), {"h001": None})
    assert found.status == PASS
