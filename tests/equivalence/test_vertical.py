"""Sites that hold columns of the same records: linked and trained on Ray, bits are those of this process."""

import pytest
import torch

import fedray as fr
from fedray.algorithms.vertical_options import of_widths

INIT = {"bias": torch.zeros((), dtype=torch.float64)}
MAKE = {
    "logistic": lambda: fr.algorithms.vertical_logistic(0.5, batch_size=32),
    "towers": lambda: of_widths(3, hidden=(4,), width=3, head=(4,), batch_size=32, merge="sum"),
}


def train(name, **layout):
    data = fr.data.by_columns(fr.data.synthetic_icu(num_sites=12, scale=0.02), 3, missing=0.1)
    algorithm = MAKE[name]()
    with fr.simulate(data, **layout) as federation:
        linked = data.linkage.link(federation)
        program = {"test": algorithm.evaluate("test")}
        result = fr.fit(algorithm, federation, init=INIT, rounds=3, evaluate=program)
    return linked.shared, result.params_sha256, result.test.metrics["loss"], result.row_invariant


@pytest.mark.parametrize("name", MAKE)
def test_packs_give_equal_bits(name):
    expected = train(name)
    assert [train(name, packs=packs) for packs in (2, 3)] == [expected, expected]


@pytest.mark.parametrize("name", MAKE)
def test_ray_gives_the_bits_of_this_process(name, ray_session):
    assert train(name, runtime="ray", sites_per_actor=1, placement="actors") == train(name)
