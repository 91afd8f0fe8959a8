"""The flow of labels: what hides what, and which protections cannot both hold."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

import fedray as fr
from fedray.coded import Encode
from fedray.core.flow import Mark, check_flow, marks
from fedray.core.graph import Claim, Label, Op
from fedray.core.trace import trace
from fedray.errors import SecurityConflict, VerifyError

HIDDEN = Claim(by="secure_sum", text="the server sees sums", is_hidden=True)


@dataclass(frozen=True)
class Says:
    """A function with the attributes that a pass gives it."""

    grants: Any = None
    needs: Any = None
    mechanism: Any = None
    bound: Any = None
    title: str = "krum"

    def __call__(self, *values):
        return values[0]


@dataclass(frozen=True)
class Mechanism:
    noise_by: str


def graph_of(round, **fields):
    return replace(trace(fr.Algorithm(lambda x: x, round, name="toy")), **fields)


def label_of(graph, name):
    return next(mark for node, mark in marks(graph).items() if node.op is Op.REDUCE and node.name == name)


def masked(kind):
    def round(server, site):
        hidden = fr.map(Says(grants=Label.MASKED), site.data)
        return fr.Outputs(server=fr.apply(Says(grants=Label.AGG), kind(hidden, name="x")))

    return graph_of(round)


def test_a_masked_sum_hides_the_sum_and_is_opened_to_it():
    assert label_of(masked(fr.sum), "x") == Mark(Label.MASKED, Label.AGG)
    check_flow(masked(fr.sum))


def test_masked_values_of_single_sites_cannot_be_opened_at_the_server():
    assert label_of(masked(fr.gather), "x") == Mark(Label.MASKED, Label.VISIBLE)
    with pytest.raises(VerifyError, match=r"krum opens a value that is masked\(one site visible\)"):
        check_flow(masked(fr.gather))


def test_a_carrier_beside_a_plain_value_hides_nothing():
    def round(server, site):
        both = fr.map(Says(), fr.map(Says(grants=Label.MASKED), site.data), site.data)
        return fr.Outputs(server=fr.gather(both, name="x"))

    assert label_of(graph_of(round), "x") == Mark(Label.VISIBLE)


def test_noise_at_the_sites_makes_what_leaves_differentially_private():
    def round(server, site):
        return fr.Outputs(server=fr.gather(fr.map(Says(grants=Label.DP), site.data), name="x"))

    assert label_of(graph_of(round, claims=(HIDDEN,)), "x") == Mark(Label.DP)
    check_flow(graph_of(round, claims=(HIDDEN,)))


def test_a_rule_that_needs_each_site_is_refused_where_only_sums_are_shown():
    def round(server, site):
        return fr.Outputs(server=fr.apply(Says(needs=Label.VISIBLE), fr.gather(site.data, name="delta")))

    check_flow(graph_of(round))
    with pytest.raises(SecurityConflict, match="krum .* needs per-site updates .* secure_sum exposes only .*"
                                               "group_secure_sum.* or drop krum or secure_sum"):
        check_flow(graph_of(round, claims=(HIDDEN,)))


def test_a_rule_that_needs_each_site_is_refused_where_it_gets_a_sum():
    def round(server, site):
        return fr.Outputs(server=fr.apply(Says(needs=Label.VISIBLE), fr.sum(site.data, name="delta")))

    with pytest.raises(SecurityConflict, match="gets sums"):
        check_flow(graph_of(round))


def per_site_metrics(server, site):
    return fr.Outputs(server=server, metrics=fr.gather(site.data, name="loss"))


def per_site_models(server, site):
    own = fr.scatter(fr.apply(Says(), fr.gather(site.data, name="model")))
    return fr.Outputs(server=fr.sum(fr.map(Says(), own), name="x"))


def by_region(server, site):
    return fr.Outputs(server=fr.sum(site.data, name="x", by="region"))


def plain_gather(server, site):
    return fr.Outputs(server=fr.gather(site.data, name="x"))


@pytest.mark.parametrize(("round", "why"), [
    (per_site_metrics, "figures of each site.*evaluate.per_site=false"),
    (per_site_models, "something for each site.*fedper"),
    (by_region, "region of one site"),
    (plain_gather, r"each site's own value.*mean\(\) or sum\(\)"),
])
def test_what_shows_one_site_is_refused_with_its_reason_and_a_fix(round, why):
    with pytest.raises(SecurityConflict, match=why):
        check_flow(graph_of(round, claims=(HIDDEN,)))


def test_a_share_of_noise_that_leaves_in_plain_is_refused():
    def round(server, site):
        return fr.Outputs(server=fr.sum(fr.map(Says(needs=Label.MASKED), site.data), name="x"))

    with pytest.raises(SecurityConflict, match="share of the noise.*secure=secure_sum"):
        check_flow(graph_of(round))


def test_a_share_of_noise_that_leaves_masked_is_allowed():
    def round(server, site):
        noised = fr.map(Says(needs=Label.MASKED), site.data)
        return fr.Outputs(server=fr.sum(fr.map(Says(grants=Label.MASKED), noised), name="x"))

    check_flow(graph_of(round))


def test_noise_of_a_curious_server_is_refused():
    def round(server, site):
        noised = fr.apply(Says(grants=Label.DP, mechanism=Mechanism("server")), fr.sum(site.data, name="x"))
        return fr.Outputs(server=noised)

    check_flow(graph_of(round))
    curious = Claim(by="policy", text="", hub="curious")
    with pytest.raises(SecurityConflict, match="noise that the server adds.*curious"):
        check_flow(graph_of(round, claims=(curious,)))


def test_rounding_after_a_clip_is_refused():
    def round(server, site):
        clipped = fr.map(Says(bound=1.0, title="clip"), site.data)
        return fr.Outputs(server=fr.sum(fr.map(Encode("coder"), clipped), name="x"))

    with pytest.raises(SecurityConflict, match="after clip has clipped it.*compression before privacy"):
        check_flow(graph_of(round))


def test_a_policy_that_does_not_trust_the_server_refuses_a_plain_sum():
    def round(server, site):
        return fr.Outputs(server=fr.sum(site.data, name="x"))

    with pytest.raises(SecurityConflict, match="leaves in plain.*Fix: mask it: secure=secure_sum.*require"):
        fr.compile(fr.Algorithm(lambda x: x, round, name="toy"), [fr.passes.require(hub="curious")])
