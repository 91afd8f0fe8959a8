"""What is frozen goes to a host once and never comes back: bytes, bits, restarts, other programs."""

import pytest
import torch
from torch import nn

import fedray as fr
from fedray import tree
from fedray.algorithms.fedavg import FedAvgState
from fedray.core.explain import egress_rows
from fedray.data.site import SiteData
from fedray.frozen import Cut, with_frozen, without_frozen
from fedray.runtime import checkpoint
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.kept import HASH_BYTES, Kept, Sender, sent_bytes

WIDTH, NUM_SITES = 64, 4
BACKBONE = tree.nbytes(tree.flatten({"w": torch.zeros(WIDTH, 6), "b": torch.zeros(WIDTH)}))
HEAD = tree.nbytes(tree.flatten({"w": torch.zeros(1, WIDTH), "b": torch.zeros(1)}))


def module(is_frozen=True):
    made = nn.Sequential(nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    made[0].requires_grad_(not is_frozen)
    return made


def data():
    made = {}
    for site in range(NUM_SITES):
        generator = torch.Generator().manual_seed(site)
        x = torch.randn(10 + 4 * site, 6, generator=generator)
        made[f"h{site}"] = SiteData({"x": x, "y": (x[:, 0] > 0).float()})
    return made


def trained(model, init, rounds=3, packs=None, group_size=256, schedule=None, **options):
    with fr.simulate(data(), packs=packs, group_size=group_size) as federation:
        local = fr.learn.sgd(model, lr=0.3, epochs=2, batch_size=4)
        return fr.fit(
            fr.algorithms.fedavg(local), federation, init=init, rounds=rounds, every=1,
            schedule=schedule or fr.synchronous(), **options,
        )


def frozen_model():
    return fr.learn.from_module(module(), task="binary")


@pytest.mark.parametrize("packs", [1, NUM_SITES])
def test_a_frozen_backbone_goes_down_once_and_never_comes_back(packs):
    model = frozen_model()
    init = model.init(0)
    result = trained(model, init, packs=packs)
    first, *others = [record.bytes_down for record in result.metrics]
    assert others == [packs * (HEAD + 2 * HASH_BYTES)] * 2
    assert first == others[0] + packs * BACKBONE
    [row] = [row for row in egress_rows(result.plan) if row["name"] == "delta"]
    assert row["site_bytes"] < HEAD + 64  # and not that of the backbone
    assert f"[{BACKBONE:,} B of it once a host]" in fr.explain(result.plan)
    for name in ("0.weight", "0.bias"):
        assert torch.equal(result.params[name], init[name])
    assert not torch.equal(result.params["2.weight"], init["2.weight"])


def test_training_comes_to_what_it_comes_to_where_everything_travels():
    """A loss of one's own, which trains the head alone because the backbone enters it without a gradient."""
    model = frozen_model()
    init = model.init(0)

    def loss(params, batch):
        still = {name: params[name].detach() if name.startswith("0.") else params[name] for name in params}
        return model.loss(still, batch)

    local = fr.learn.sgd(loss, lr=0.3, epochs=2, batch_size=4)
    with fr.simulate(data()) as federation:
        expected = fr.fit(fr.algorithms.fedavg(local), federation, init=dict(init), rounds=3)
    assert expected.metrics[1].bytes_down > BACKBONE
    found = trained(model, init)
    assert all(torch.equal(found.params[name], expected.params[name]) for name in init)


def test_layouts_give_equal_bits():
    model = frozen_model()
    results = [trained(model, model.init(0), **layout)
               for layout in ({"packs": 1}, {"packs": 2, "group_size": 1}, {"packs": 4})]  # fmt: skip
    assert len({result.params_sha256 for result in results}) == 1


def test_a_host_that_is_asked_for_the_first_time_gets_it_then():
    schedule = fr.synchronous(cohort=1, sampling="cyclic")
    model = frozen_model()
    result = trained(model, model.init(0), rounds=6, schedule=schedule, packs=NUM_SITES)
    each = HEAD + 2 * HASH_BYTES
    assert [record.bytes_down for record in result.metrics] == [each + BACKBONE] * 4 + [each] * 2


def test_another_program_names_what_hosts_hold():
    model = frozen_model()
    told = []

    class Watching(Sender):
        def message(self, plan, index, value, put):
            found = super().message(plan, index, value, put)
            told.append(sent_bytes(found))
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedray.runtime.round.Sender", Watching)
        watch = {"valid": fr.algorithms.evaluation(model, split="train")}
        trained(model, model.init(0), rounds=2, evaluate=watch, packs=1)
    assert len(told) >= 4 and max(told) == HEAD + 2 * HASH_BYTES


@pytest.mark.parametrize("compression", [fr.passes.topk(0.5), fr.passes.ef21(0.5)])
def test_passes_see_what_moves_alone_and_go_on_from_a_checkpoint(compression, tmp_path):
    model = frozen_model()
    init = model.init(0)
    plain = trained(model, init, passes=[compression], packs=NUM_SITES)
    saved = Checkpoints(tmp_path, every_s=0.0)
    trained(model, init, rounds=1, passes=[compression], packs=NUM_SITES, checkpoint=saved)
    again = trained(model, init, passes=[compression], packs=NUM_SITES, checkpoint=saved, resume=True)
    assert again.params_sha256 == plain.params_sha256
    [row] = [row for row in egress_rows(plain.plan) if row["name"] == "delta"]
    assert row["site_bytes"] < HEAD < BACKBONE
    assert torch.equal(plain.params["0.weight"], init["0.weight"])


def test_a_layout_without_what_is_frozen_goes_through_a_checkpoint():
    flat = frozen_model().init(0)
    flat = tree.zeros_like(flat)
    cut, tensors = without_frozen(flat), {}
    assert isinstance(cut.schema, Cut)
    again = checkpoint.decode(checkpoint.encode(cut, tensors, "a"), tensors, {})
    assert again == cut and with_frozen(again) == flat


def test_an_update_that_moves_what_is_frozen_is_left_out_and_told():
    model = frozen_model()
    init = model.init(0)

    def moves(params, data, rng):
        delta = tree.add(tree.zeros_like(params), float(rng.site == "h1"))
        return fr.learn.Update(delta, 1, 1, {"loss": 0.0})

    with fr.simulate(data()) as federation:
        result = fr.fit(
            fr.algorithms.fedavg(moves), federation, init=init, rounds=1,
            schedule=fr.synchronous(quorum=0.5),
        )
    assert result.failures == {("h1", "moved a frozen parameter"): 1}


def test_statistics_of_batches_in_a_frozen_backbone_go_on_moving():
    layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
    for layer in layers[:2]:
        layer.requires_grad_(False)
    model = fr.learn.from_module(nn.Sequential(*layers), task="binary")
    init = model.init(0)
    result = trained(model, init)
    assert not torch.equal(result.params["1.running_mean"], init["1.running_mean"])
    assert torch.equal(result.params["1.weight"], init["1.weight"])


def test_the_frozen_head_of_fedbabu_goes_down_once():
    model = fr.learn.from_module(module(is_frozen=False), task="binary")
    local = fr.learn.sgd(model, lr=0.1)
    with fr.simulate(data()) as federation:
        result = fr.fit(fr.algorithms.fedbabu(local), federation, init=model.init(0), rounds=3)
    first, second, third = [record.bytes_down for record in result.metrics]
    assert second == third == BACKBONE + 2 * HASH_BYTES and first == second + HEAD


def flat(value, frozen=("w",)):
    return tree.flatten({"w": torch.full((40,), value), "b": torch.zeros(3)}, frozen=frozen)


def test_what_changes_is_put_anew_and_the_old_is_forgotten():
    sender, host, puts = Sender(), Kept(), []

    def put(value):
        puts.append(value)
        return value

    for value in (1.0, 1.0, 2.0, 2.0, 1.0):
        found = host.whole("p", 0, sender.message("p", 0, flat(value), put))
        assert found == flat(value)
    assert [float(each["w"][0]) for each in puts] == [1.0, 2.0, 1.0]
    assert len(sender._boxes) == len(host._leaves) == 1


def test_bits_and_not_values_are_compared():
    sender = Sender()
    sender.message("p", 0, flat(0.0), lambda value: value)
    message = sender.message("p", 0, flat(-0.0), lambda value: value)
    assert torch.signbit(Kept().whole("p", 0, message)["w"]).all()


def test_a_host_that_starts_again_reads_it_again():
    sender = Sender()
    for round in range(3):
        message = sender.message("p", 0, flat(1.0), lambda value: value)
        host = Kept()  # empty, as after a restart
        assert host.whole("p", 0, message) == flat(1.0)
        assert host.take_opened() == tree.nbytes(tree.flatten({"w": torch.zeros(40)})), round


def test_a_state_that_freezes_nothing_is_sent_as_it_is():
    value = FedAvgState(flat(1.0, frozen=()), {}, 3)
    assert Sender().message("p", 0, value, lambda value: value) is value
