"""The planner: what it counts on made-up rows is what a run of the same layout really sends."""

import pytest

import fedray as fr
from fedray import cli
from fedray.cluster.edges import count
from fedray.cluster.planner import FLAT, REGIONAL, Link, links_of, rows_of, table
from fedray.errors import ConfigError
from fedray.runtime.federation import Topology

HOSPITALS = fr.data.synthetic_icu(num_sites=12, scale=0.02, seed=3)
MODEL = fr.learn.mlp(len(HOSPITALS.features), (16,))
LOCAL = fr.learn.sgd(MODEL, lr=0.1, batch_size=16)
NAMES = sorted(HOSPITALS)
REGIONS = {"north": NAMES[:5], "south": NAMES[5:11], "isle": NAMES[11:]}
OF = {site: region for region, sites in REGIONS.items() for site in sites}


def algorithm(name):
    made = {"fedavg": lambda: fr.algorithms.fedavg(LOCAL),
            "scaffold": lambda: fr.algorithms.scaffold(LOCAL, num_sites=len(NAMES))}  # fmt: skip
    return made[name]()


def measured(name, layout, passes=(), schedule=None, fold="exact", rounds=3):
    schedule = schedule or fr.synchronous()
    with fr.simulate(HOSPITALS, regions=layout, sites_per_actor=1) as federation:
        result = fr.fit(algorithm(name), federation, init=MODEL.init(0), rounds=rounds, schedule=schedule,
                        passes=passes, fold=fold)  # fmt: skip
    return [(record.bytes_down, record.bytes_up) for record in result.metrics]


def planned(name, layout, passes=(), schedule=None, fold="exact", rounds=3):
    schedule = schedule or fr.synchronous()
    plan = fr.compile(algorithm(name), passes, schedule, fold)
    state = algorithm(name).init(MODEL.init(0))
    with fr.simulate(HOSPITALS) as federation:
        blank = federation.call("blank")
    specs = Topology(sites_per_actor=1, allow_empty=True).specs(dict.fromkeys(NAMES), layout, 1)
    found = count(plan, state, blank, specs, schedule, rounds=rounds)
    return [(each.into("aggregator").down, each.into("aggregator").up) for each in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
@pytest.mark.parametrize("layout", [None, REGIONS], ids=[FLAT, REGIONAL])
@pytest.mark.parametrize("fold", ["exact", "regional", "fast"])
def test_predicted_bytes_are_measured_bytes(name, layout, fold):
    assert planned(name, layout, fold=fold) == measured(name, layout, fold=fold)


@pytest.mark.parametrize("passes", [[fr.passes.topk(0.1)], [fr.passes.qsgd(4)],
                                    [fr.passes.secure_sum("ideal", min_cohort=3)]])  # fmt: skip
def test_predicted_bytes_are_measured_bytes_under_passes(passes):
    assert planned("fedavg", REGIONS, passes) == measured("fedavg", REGIONS, passes)


def test_predicted_bytes_are_those_of_the_cohorts_that_will_be_drawn():
    schedule = fr.synchronous(cohort=0.4)
    assert planned("fedavg", REGIONS, schedule=schedule, rounds=5) == measured(
        "fedavg", REGIONS, schedule=schedule, rounds=5
    )


def test_rows_say_what_a_region_puts_on_its_link_and_a_rounded_sum_is_a_model():
    plan = fr.compile(algorithm("fedavg"), fold="regional")
    state = algorithm("fedavg").init(MODEL.init(0))
    with fr.simulate(HOSPITALS) as federation:
        blank = federation.call("blank")
    links = links_of(["100:8:1000"], list(REGIONS))
    rows = rows_of(plan, state, blank, fr.synchronous(), OF, NAMES, links)
    north = {row.aggregation: row for row in rows if row.region == "north"}
    assert (north[FLAT].sites, len(rows)) == (5, 6)
    assert north[FLAT].down_bytes == 5 * north[REGIONAL].down_bytes
    assert 2.0 <= north[REGIONAL].models <= 2.2 < north[FLAT].models
    total = north[REGIONAL].down_bytes + north[REGIONAL].up_bytes
    assert north[REGIONAL].price_per_1000_rounds == pytest.approx(total * 1000 / 1e9 * 1000)
    assert north[REGIONAL].seconds >= total / 1e6 + 0.2
    assert "less" in table(rows)[-1]


def test_links_are_given_for_all_regions_and_for_one():
    links = links_of(["south=150:20:0.09", "40:1000:0"], ["north", "south"])
    assert links == {"north": Link(40, 1000, 0), "south": Link(150, 20, 0.09)}
    for wrong, message in (("x:1:1", "Fix: --link"), ("west=1:1:1", "no region 'west'"), ("1:0:1", "above 0"),
                           ("1:2:3:4", "Fix"), ("nan:1:1", "not below")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            links_of([wrong], ["north"])


def test_plan_of_a_study_for_a_cluster_starts_no_ray_and_joins_none(capsys):
    words = ["cluster", "plan", "data=synthetic_icu", "data.num_sites=8", "runtime=ray_cluster",
             "runtime.address=192.0.2.1:6379", "--compression", "none"]  # fmt: skip
    assert cli.main(words) == 0  # nobody answers at that address
    assert "more" in capsys.readouterr().out.splitlines()[-1]  # exact sums of few sites
