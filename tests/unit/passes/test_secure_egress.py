"""What `egress` and the trust statement say of secure sums: golden files, to the byte what is sent; and words
of the ring by themselves.

FEDRAY_UPDATE_GOLDEN=1 writes the golden files again: review the difference like code.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.core.trust import trust_statement
from fedray.passes.secure_steps import Write
from fedray.passes.secure_words import DIGITS, Agreed, digits_of, numbers_of, read
from fedray.rows import Group, Rows, Same, column
from fedray.runtime.plan import lane_names
from fedray.testing import check_rows
from tests.unit.passes.stacks import ALGORITHMS, fitted

P = fr.passes
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "egress_secure"
STACKS = {
    "randk_secure_sum": [P.randk(0.1), P.secure_sum("real")],
    "secure_sum_curious": [P.secure_sum("real", server="curious")],
    "secure_sum_ideal": [P.secure_sum()],
    "two_server": [P.two_server()],
    "none": [],
}


@pytest.mark.parametrize("name", STACKS)
def test_what_leaves_and_what_is_claimed_are_the_golden_ones(name):
    plan = fitted(STACKS[name], "scaffold")[0].plan
    text = f"{fr.egress(plan)}\n\n{trust_statement(plan)}\n".replace(plan.digest[:8], "········")
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("FEDRAY_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def test_what_is_masked_leaves_in_the_bytes_that_egress_says():
    def look(federation):
        return federation.call("arrived")

    result, arrived = fitted([P.secure_sum("real")], "scaffold", rounds=1, look=look, sites_per_actor=1)
    masked = next(node for node in result.plan.nodes if node.params.get("masked"))
    (name,) = lane_names(masked)
    assert arrived[name] == 6 * result.plan.sizes[name].row_bytes
    for told in ("secure.public_keys", "secure.delivered", "secure.survivors"):
        assert arrived[told] == 6 * result.plan.sizes[told].row_bytes
    per_peer = result.plan.sizes["secure.shares"].row_bytes
    assert arrived["secure.shares"] <= 6 * 5 * per_peer


def test_a_policy_judges_the_names_that_are_inside_a_masked_sum():
    masked = P.secure_sum("real")
    fr.compile(ALGORITHMS["fedavg"](), [masked, P.require(released={"delta", "metrics"})])
    with pytest.raises(fr.errors.PolicyError, match=r"metrics, metrics.weight \(sum"):
        fr.compile(ALGORITHMS["fedavg"](), [masked, P.require(released={"delta"})])


def test_a_server_that_is_not_trusted_takes_masked_sums_and_no_plain_ones():
    curious = P.require(hub="curious")
    fr.compile(ALGORITHMS["fedavg"](), [P.secure_sum("real"), curious])
    with pytest.raises(fr.errors.SecurityConflict, match="curious"):
        fr.compile(ALGORITHMS["fedavg"](), [curious])


@pytest.mark.parametrize("simulated", [P.secure_sum(), P.two_server()])
def test_simulated_masks_do_not_hold_what_a_policy_claims_of_masked_sums(simulated):
    plan = fr.compile(ALGORITHMS["fedavg"](), [simulated, P.require(hub="curious")])
    text = "would hold with masks, which are simulated here: nothing that a site sends"
    for told in (fr.egress(plan), fr.explain(plan), fr.passes.trust_statement(plan)):
        assert text in told.replace("\n    ", " ")
    masked = fr.compile(ALGORITHMS["fedavg"](), [P.secure_sum("real"), P.require(hub="curious")])
    assert "would hold" not in fr.passes.trust_statement(masked)


@pytest.mark.parametrize("simulated", [P.secure_sum(), P.two_server()])
def test_shares_of_noise_do_not_say_nobody_is_trusted_where_masks_are_simulated(simulated):
    shares = P.site_dp_distributed(noise_multiplier=1.0, num_params=99, cohort=8, weights="uniform")
    told = fr.passes.trust_statement(fr.compile(ALGORITHMS["fedavg"](), [shares, simulated]))
    trusted = told.partition("\nTrusted\n")[2].splitlines()
    assert "with each site's own value" in trusted[0] and "  - nobody" not in told


@pytest.mark.parametrize("num_sites", [1, 2, 8, 200, 1000])
def test_digits_add_up_to_the_sum_of_wide_numbers(num_sites):
    agreed = Agreed(num_sites, {}, {})
    generator = np.random.default_rng(0)
    values = generator.standard_normal((num_sites, 5)) * [1e-6, 1.0, 1e6, 1e12, 2.0**49]
    values[:, 4] = np.rint(values[:, 4] / 8) * np.where(np.abs(values[:, 4]) < 2.0**50, 1, 0)
    words = digits_of(values, agreed.digit_bits, "x")
    assert words.shape == (num_sites, 5 * DIGITS)
    total = np.add.reduce(words, 0, dtype=np.uint32)
    found = numbers_of(total, agreed.digit_bits)
    assert np.allclose(found, values.sum(0), rtol=1e-14, atol=num_sites * 2.0**-40)


def test_a_number_that_is_too_wide_is_refused():
    with pytest.raises(ValueError, match="number of x is 2"):
        digits_of(np.array([[2.0**50]]), 20, "x")


def test_words_of_a_site_do_not_depend_on_who_is_beside_it():
    lanes = (("x", 0, 1, True), ("n", 1, None, False))
    generator = torch.Generator().manual_seed(0)
    given = [(tree.flatten({"w": torch.randn(40, generator=generator)}), 3 + i) for i in range(9)]
    check_rows(Write(lanes), given, shared=[Agreed(9, {"x": 4.0}, {"x": 16.0})], tolerance=0.0)


def test_a_lost_row_is_written_as_zeros_and_the_count_lane_finds_a_wrong_number_of_sites():
    group = Group(["a", "b", "c"])
    group.is_alive[1] = False
    x = torch.tensor([[1.0, 2.0], [float("nan"), 1e38], [3.0, 4.0]])
    agreed = Agreed(3, {"x": 8.0}, {})
    words = Write((("x", 0, None, True),)).rows(group, Same(agreed), Rows(x))
    total = np.add.reduce(words.buffer.numpy(), 0, dtype=np.uint32)
    assert not words.buffer[1].numpy().any()
    assert torch.allclose(read(total, words.schema, 2).sums["x"].divided_by(2), torch.tensor([2.0, 3.0]))
    with pytest.raises(fr.errors.SecrecyError, match="E_COUNT"):
        read(total, words.schema, 3)


def test_a_weight_that_is_no_whole_number_is_refused():
    lanes = (("x", 0, 1, True),)
    with pytest.raises(ValueError, match="weight of x is negative or not whole"):
        Write(lanes).rows(Group(["a"]), Same(Agreed(3, {}, {})), Rows(torch.ones(1, 2)), Rows(column([0.5])))


def test_a_weight_above_its_cap_counts_as_the_cap_in_both_sums():
    lanes = (("x", 0, 1, True), ("x.weight", 1, None, False))
    agreed = Agreed(2, {"x": 8.0}, {"x": 4.0})
    x, w = Rows(torch.tensor([[1.0], [3.0]])), Rows(column([4, 100]))
    words = Write(lanes).rows(Group(["a", "b"]), Same(agreed), x, w)
    found = read(np.add.reduce(words.buffer.numpy(), 0, dtype=np.uint32), words.schema, 2)
    weight = found.sums["x.weight"].divided_by(1.0)
    assert weight == 104.0 and found.sums["x"].divided_by(weight).item() == pytest.approx(2.0, abs=1e-6)
