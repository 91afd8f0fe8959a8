"""What a regional aggregator was sent is put again on its node; what hosts hold is fetched there once."""

from types import SimpleNamespace

import pytest
import torch

from fedray import tree
from fedray.frozen import Followed
from fedray.runtime import ray_relay
from fedray.runtime.host import Contribution
from fedray.runtime.kept import Change, Kept, Sender, boxed_bytes
from fedray.runtime.ray_relay import Relay

FROZEN = {"head": torch.ones(3), "body": torch.arange(400.0)}


class Box:
    """A box as Ray's: what was put, and who put it."""

    def __init__(self, value, owner):
        self.value, self.owner, self.reads = value, owner, 0
        self.reference = SimpleNamespace(hex=lambda: str(id(self)))

    def open(self):
        self.reads += 1
        return self.value


@pytest.fixture
def relay(monkeypatch):
    monkeypatch.setattr(ray_relay, "ray", SimpleNamespace(put=lambda value: value))
    return Relay()


def sent_down(sender, value, boxes):
    def put(found):
        boxes.append(Box(found, "aggregator"))
        return boxes[-1]

    return put({0: sender.message("plan", 0, value, put)})


def ours(value):
    return Box(value, "region")


def model(scale):
    return tree.flatten({**FROZEN, "head": scale * FROZEN["head"]}, frozen=("body",))


def test_the_same_downlink_is_put_once_however_often_it_is_asked_with(relay):
    box = Box({0: torch.ones(4)}, "aggregator")
    first = relay.box(box, box.open(), ours)
    assert relay.box(box, box.open(), ours) is first and first.owner == "region"
    other = Box({0: torch.ones(4)}, "aggregator")
    assert relay.box(other, other.open(), ours) is not first


def test_frozen_leaves_are_fetched_by_the_region_once_and_by_its_hosts_from_there(relay):
    sender, hosts, boxes, opened = Sender(), [Kept(), Kept()], [], []
    for scale in (1.0, 2.0, 3.0):
        down = sent_down(sender, model(scale), boxes)
        box = relay.box(down, down.open(), ours)
        for kept in hosts:
            found = kept.whole("plan", 0, box.open()[0])
            assert torch.equal(found["body"], FROZEN["body"])
            assert torch.equal(found["head"], scale * FROZEN["head"])
        below = sum(kept.take_opened() for kept in hosts)
        answer = relay.counted(Contribution(delivered=(), failures=(), opened_bytes=below))
        opened.append(answer.opened_bytes)
    frozen = [box for box in boxes if not isinstance(box.value, dict) or 0 not in box.value]
    assert [box.reads for box in frozen] == [1]
    assert opened == [boxed_bytes(boxes[1].value), 0, 0]


def test_a_followed_value_is_fetched_whole_at_first_and_its_changes_pass_by(relay):
    whole = torch.arange(6.0)
    sender, boxes = Sender(), []
    first = sent_down(sender, Followed(None, None, whole), boxes)
    relayed = relay.box(first, first.open(), ours).open()[0]
    assert isinstance(relayed, Change) and relayed.boxed.box.owner == "region"
    assert torch.equal(Kept().whole("plan", 0, relayed), whole)
    later = sent_down(sender, Followed(torch.ones(6), whole, whole + 1), boxes)
    passed = relay.box(later, later.open(), ours).open()[0]
    assert passed.boxed.box.owner == "aggregator" and passed.boxed.box.reads == 0
