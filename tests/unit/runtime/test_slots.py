"""A pass has a memory of its own: zeros at first use, committed with the count, saved and restored."""

import torch

import fedray as fr
from fedray import tree
from fedray.passes import on_reduce
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.runtime.test_round import averaging, stateful
from tests.unit.runtime.toy import Breaks, ToyLocal, train


def keep_half(total):
    return tree.scale(total, 0.5)


@on_reduce("mean", only={"delta"})
def lazy(x, weight, name, site):
    """Send half of what is owed and keep the rest for the next round: error feedback in its simplest form."""
    owed = x + site.slot("rest", like=x)
    sent = fr.map(keep_half, owed)
    site.store("rest", owed - sent)
    return fr.mean(sent, weight=weight, name=name)


def test_a_pass_remembers_what_it_did_not_send():
    once = train(averaging(ToyLocal()), rounds=1)
    half = train(averaging(ToyLocal()), rounds=1, passes=[lazy])
    assert torch.allclose(half.params.buffer * 2, once.params.buffer)
    twice = train(averaging(ToyLocal()), rounds=2, passes=[lazy])
    assert not torch.allclose(twice.params.buffer, half.params.buffer)


def test_the_memory_of_a_site_that_was_not_counted_is_unchanged():
    broken = Breaks(ToyLocal(), ("h03",), 1, "nan")
    with fr.simulate({f"h{i:02d}": opened for i, opened in enumerate(_openers())}) as federation:
        pack = federation.aggregator.root.transport.hosts["pack0"]
        seen = []

        class Look:
            def start(self, plan, facts):
                pass

            def round(self, record):
                federation.aggregator.root.commit([])
                seen.append((pack.state_of("h03", "rest"), pack.state_of("h04", "rest")))

            def finish(self, result):
                pass

        from tests.unit.runtime.toy import INIT

        fr.fit(averaging(broken), federation, init=INIT, rounds=2, passes=[lazy], tracker=Look())
    assert tree.equal(seen[0][0], seen[1][0]) and not tree.equal(seen[0][1], seen[1][1])


def _openers():
    from tests.unit.runtime.toy import Open

    return [Open(number) for number in range(6)]


def test_memory_and_site_state_survive_a_resume_and_any_layout(tmp_path):
    whole = train(stateful(ToyLocal()), rounds=4, passes=[lazy])
    train(stateful(ToyLocal()), rounds=2, passes=[lazy], checkpoint=Checkpoints(tmp_path), packs=3)
    resumed = train(
        stateful(ToyLocal()),
        rounds=4,
        passes=[lazy],
        checkpoint=Checkpoints(tmp_path),
        resume=True,
        group_size=1,
    )
    assert resumed.params_sha256 == whole.params_sha256
