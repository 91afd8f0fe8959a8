"""What sites keep under personalised algorithms: equal bits on any number of packs, and after a resume."""

import pytest

import fedray as fr
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.algorithms.cases import CYCLIC, kept, personal_models, single, sites
from tests.unit.algorithms.test_moon import INIT as MOON_INIT
from tests.unit.algorithms.test_moon import features, local_of

A = fr.algorithms
LOCAL, DATA, INIT = single("auto")
MAKE = {
    "apfl": lambda: A.apfl(LOCAL, 0.3),
    "ditto": lambda: A.ditto(LOCAL, 0.5),
    "dpsgd": lambda: A.dpsgd(LOCAL, tuple("abcde")),
    "fedamp": lambda: A.fedamp(LOCAL),
    "fedbn": lambda: A.fedbn(LOCAL, ["bias"]),
    "fedper": lambda: A.fedper(LOCAL, ["bias"]),
    "fedrep": lambda: A.fedrep(LOCAL, ["bias"]),
    "lg_fedavg": lambda: A.lg_fedavg(LOCAL, ["bias"]),
    "moon": lambda: A.moon(local_of(), features=features),
    "fedbabu": lambda: A.fedbabu(LOCAL, ["bias"]),
    "fine_tuning": lambda: A.fine_tuning(LOCAL),
    "per_fedavg": lambda: A.per_fedavg(LOCAL, 0.05),
    "pfedme": lambda: A.pfedme(LOCAL, 1.0, 0.5, local_rounds=2),
}
KEEPING = ("apfl", "ditto", "dpsgd", "fedamp", "fedbn", "fedper", "fedrep", "lg_fedavg", "moon")


def run(name, rounds=4, packs=2, **more):
    """Return (hash of the parameters, what sites keep and their own models, as bytes)."""
    is_moon, algorithm = name == "moon", MAKE[name]()
    with fr.simulate(sites() if is_moon else DATA, packs=packs) as federation:
        init = MOON_INIT if is_moon else INIT
        result = fr.fit(algorithm, federation, init=init, rounds=rounds, schedule=CYCLIC, **more)
        federation.aggregator.root.commit([])
        found = [kept(federation)]
        if algorithm.personal is not None:
            found.append(personal_models(algorithm)(federation))
    told = [{i: None if v is None else v.tobytes() for i, v in sorted(each.items())} for each in found]
    return result.params_sha256, told


@pytest.mark.parametrize("name", MAKE)
def test_bits_do_not_depend_on_how_sites_are_packed(name):
    expected = run(name, packs=1)
    assert [run(name, packs=packs) for packs in (2, 5)] == [expected, expected]
    if name in KEEPING:
        assert any(state is not None for state in expected[1][0].values())


@pytest.mark.parametrize("name", KEEPING)
def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(name, tmp_path):
    run(name, rounds=2, checkpoint=Checkpoints(tmp_path))
    resumed = run(name, rounds=4, checkpoint=Checkpoints(tmp_path), resume=True)
    assert resumed == run(name, rounds=4)
