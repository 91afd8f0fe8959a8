"""Where packs compute: what is refused without a GPU, the way there and back, and equality where one is."""

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import fedray as fr
from fedray import config, learn, tree
from fedray.data.site import SiteData
from fedray.errors import ConfigError
from fedray.rows import Column, Group, Ragged, Rows
from fedray.runtime import devices
from fedray.runtime.federation import HostSpec, Topology, device_of
from tests.unit.runtime.toy import INIT, NUM_FEATURES, ToyLocal, sites

has_gpu = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not has_gpu, reason="no CUDA device here")
MODEL = learn.mlp(NUM_FEATURES, (8,))
DROPPING = learn.from_module(
    nn.Sequential(
        OrderedDict({"0": nn.Linear(5, 8), "1": nn.ReLU(), "drop": nn.Dropout(0.3), "2": nn.Linear(8, 1)})
    )
)  # with the leaves of MODEL
LAYOUTS = ({}, {"packs": 3}, {"group_size": 2})


def local(**settings):
    return learn.sgd(MODEL, lr=0.1, batch_size=16, epochs=2, **settings)


ALGORITHMS = {
    "fedavg": lambda: fr.algorithms.fedavg(local()),
    "fedavg, momentum": lambda: fr.algorithms.fedavg(local(momentum=0.9, clip_norm=1.0)),
    "fedavg, dropout": lambda: fr.algorithms.fedavg(learn.sgd(DROPPING, lr=0.1, batch_size=16)),
    "fedavg, site by site": lambda: fr.algorithms.fedavg(local(form="loop")),
    "fedavg, vmap": lambda: fr.algorithms.fedavg(local(form="vmap")),
    "fedavg, patience": lambda: fr.algorithms.fedavg(local(patience=1)),
    "scaffold": lambda: fr.algorithms.scaffold(local(), num_sites=12),
    "ditto": lambda: fr.algorithms.ditto(local(), prox=0.1),
    "local only": lambda: fr.algorithms.local_only(local()),
}


def fit(make, **layout):
    evaluate = {"test": fr.algorithms.evaluation(MODEL, split="train")}
    with fr.simulate(sites(), **layout) as federation:
        result = fr.fit(make(), federation, init=MODEL.init(0), rounds=3, evaluate=evaluate)
        if federation.where == "ray":
            return result, {}
        federation.aggregator.root.commit([])
        packs = federation.aggregator.root.transport.hosts.values()
        kept = {site: pack.state_of(site) for pack in packs for site in pack.sites}
    return result, dict(sorted(kept.items()))


@pytest.mark.skipif(has_gpu, reason="this machine has a CUDA device")
@pytest.mark.parametrize("runtime", ["in_process", "ray"])
def test_a_gpu_that_is_not_there_is_refused_with_the_fix(runtime):
    with pytest.raises(ConfigError, match=r"no CUDA device on this machine. Fix: runtime.device=cpu"):
        fr.simulate(sites(), runtime=runtime, device="cuda")


@pytest.mark.skipif(has_gpu, reason="this machine has a CUDA device")
def test_a_pack_on_another_machine_refuses_when_it_is_asked_for_its_sites():
    from fedray.runtime.pack import Pack

    with pytest.raises(ConfigError, match="no CUDA device"):
        Pack("p", sites(), device="cuda").hello()


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:a", "mps", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="choose cpu, cuda"):
        fr.simulate(sites(), device=name)


def test_the_device_can_be_configured():
    base = ("experiment=icu_mortality", "runtime=in_process")
    assert config.compose(*base, "runtime.device=cuda:0").runtime.device == "cuda:0"
    assert config.compose(*base).runtime.device == "cpu"
    with pytest.raises(ConfigError, match=r"runtime.device=gpu.*Fix: runtime.device=cpu"):
        config.check(config.compose(*base, "runtime.device=gpu"))
    with pytest.raises(ConfigError, match=r"Ray deals the GPUs out. Fix: runtime.device=cuda"):
        config.check(config.compose("experiment=icu_mortality", "runtime=ray_local", "runtime.device=cuda:1"))


def test_packs_on_a_gpu_ask_for_shares_of_it():
    layout = {"eu": {"de": ["h00", "h01"], "fr": ["h02"]}, "us": ["h03", "h04", "h05"]}
    found = Topology(packs=1, device="cuda").specs(sites(6), layout, 1)
    packs = [
        host for top in found for host in (top.children or (top,)) for host in (host.children or (host,))
    ]
    assert {pack.gpu_share for pack in packs} == {0.3333} and device_of(found) == "cuda"
    assert {host.gpu_share for host in Topology(packs=3).specs(sites(6), None, 1)} == {0.0}
    assert device_of([HostSpec("p", sites())]) == "cpu"


@pytest.fixture
def stand_in(monkeypatch):
    """Let `cuda` mean this processor, so that the way to a device and back runs where no GPU is."""
    monkeypatch.setattr(devices, "available", lambda name: torch.device("cpu"))
    moved, fetched = [], []
    to, fetch = SiteData.to, devices.Fetched.__call__
    monkeypatch.setattr(SiteData, "to", lambda data, device: moved.append(data) or to(data, device))
    monkeypatch.setattr(
        devices.Fetched, "__call__", lambda self, tagged: fetched.append(tagged) or fetch(self, tagged)
    )
    return moved, fetched


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_way_to_a_device_changes_no_bit(name, stand_in):
    make = ALGORITHMS[name]
    expected, kept = fit(make)
    assert stand_in == ([], [])
    for layout in LAYOUTS if name != "fedavg, vmap" else LAYOUTS[:1]:
        found, states = fit(make, device="cuda", **layout)
        assert found.params_sha256 == expected.params_sha256 and tree.equal(states, kept)
        assert found.test.metrics["loss"] == pytest.approx(expected.test.metrics["loss"], rel=1e-6)
    assert len(stand_in[1]) > 3


def test_tables_are_moved_once_and_again_only_when_they_change(stand_in):
    moved, _ = stand_in
    with fr.simulate(sites(), packs=2, device="cuda") as federation:
        fr.fit(fr.algorithms.fedavg(local()), federation, init=MODEL.init(0), rounds=3)
        assert len(moved) == 12 + 6  # and the probe's three sites alone and together
        fr.fit(fr.algorithms.fedavg(local()), federation, init=MODEL.init(0), rounds=1)
        assert len(moved) == 12 + 6 + 6
        pack = federation.aggregator.root.transport.hosts["pack0"]
        pack.prepare(lambda data: data.with_columns(z=data["x"]))
        assert "z" in pack._tables.of(*next(iter(pack._data.items())), pack._data, lambda found: None)


def test_a_program_without_a_model_stays_where_the_data_lie(stand_in):
    from fedray.experiment import label_counts

    with fr.simulate(sites(), device="cuda") as federation:
        counts = fr.compute(label_counts(2), federation)
    assert stand_in == ([], []) and float(counts["rows"].sum()) > 0


def test_values_of_every_kind_stay_what_they_are_in_memory():
    flat = tree.flatten(INIT)
    value = {"a": flat, "n": Column(torch.ones(1), True), "r": Ragged([{"t": torch.ones(2)}]), "s": "text"}
    found = devices.Fetched(Group(["h"]))(Rows(value)).value
    assert found["a"].buffer is flat.buffer and found["n"].row(0) == 1 and found["s"] == "text"
    assert torch.equal(found["r"].items[0]["t"], torch.ones(2))


@needs_gpu
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_gpu_comes_to_what_the_processor_comes_to(name):
    expected, kept = fit(ALGORITHMS[name])
    found, states = fit(ALGORITHMS[name], device="cuda")
    assert found.row_invariant in (True, False, None) and "cpu" in str(found.params.buffer.device)
    assert float(tree.norm(tree.sub(found.params, expected.params))) < 1e-4
    for site, state in states.items():
        assert all(torch.allclose(a[1].buffer, b[1].buffer, atol=1e-4)
                   for a, b in zip(tree.leaves(state), tree.leaves(kept[site]), strict=True))  # fmt: skip


@needs_gpu
@pytest.mark.ray
def test_two_packs_share_a_gpu():
    expected, _ = fit(ALGORITHMS["fedavg"])
    found, _ = fit(ALGORITHMS["fedavg"], runtime="ray", packs=2, device="cuda")
    assert float(tree.norm(tree.sub(found.params, expected.params))) < 1e-4


@needs_gpu
def test_a_local_update_of_ones_own_gets_model_and_data_on_the_gpu():
    with fr.simulate(sites(), device="cuda") as federation:
        result = fr.fit(fr.algorithms.fedavg(ToyLocal()), federation, init=INIT, rounds=1)
    assert result.metrics[0].counted == 12


@pytest.mark.skipif(has_gpu, reason="this machine has a CUDA device")
def test_the_benchmark_says_that_there_is_no_gpu():
    script = Path(__file__).resolve().parents[3] / "experiments" / "benchmarks" / "gpu.py"
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.strip() == "gpu.py measures a GPU, and torch finds no CUDA device on this machine"


def test_a_group_does_not_hold_what_was_reduced_until_the_next_round():
    with fr.simulate(sites()) as federation:
        fr.fit(fr.algorithms.fedavg(local()), federation, init=MODEL.init(0), rounds=1)
        pack = federation.aggregator.root.transport.hosts["pack0"]
        assert [group.largest for groups in pack._groups.values() for group in groups] == [{}]
