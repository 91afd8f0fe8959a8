"""What `egress` promises is what the transport counted, to the byte."""

import pytest

import fedray as fr
from fedray.core.explain import egress_rows
from fedray.runtime.pack import expected_bytes
from tests.unit.runtime.test_round import averaging, stateful
from tests.unit.runtime.toy import INIT, ToyLocal, sites


@pytest.mark.parametrize("packs", [1, 2, 4, 12])
@pytest.mark.parametrize("make", [averaging, stateful])
def test_the_bytes_that_arrive_are_those_that_egress_names(make, packs):
    with fr.simulate(sites(), packs=packs) as federation:
        result = fr.fit(make(ToyLocal()), federation, init=INIT, rounds=1)
        root = federation.aggregator.root
        expected: dict[str, int] = {}
        for child in root.children.values():
            for name, size in expected_bytes(result.plan, 1, len(child.sites)).items():
                expected[name] = expected.get(name, 0) + size
        assert root.bytes_up == expected and set(expected) == {
            row["name"] for row in egress_rows(result.plan)
        }
        assert result.bytes_up == sum(expected.values())


def test_a_host_that_sends_an_unlisted_name_is_refused():
    from dataclasses import replace

    from fedray.errors import VerifyError

    with fr.simulate(sites()) as federation:
        pack = federation.aggregator.root.transport.hosts["pack0"]
        run = pack.run

        def smuggle(call, downlink):
            answer = run(call, downlink)
            return replace(answer, gathered={**answer.gathered, "patients": {"h00": 1.0}})

        pack.run = smuggle
        with pytest.raises(VerifyError, match="patients"):
            fr.fit(averaging(ToyLocal()), federation, init=INIT, rounds=1)


def test_explain_draws_the_calls_that_were_submitted():
    with fr.simulate(sites(), packs=3) as federation:
        result = fr.fit(
            averaging(ToyLocal()), federation, init=INIT, rounds=2, schedule=fr.synchronous(cohort=4)
        )
        calls = [call for call in federation.calls() if call.method == "run" and call.round == 1]
        drawn = fr.explain(result.plan, calls)
        assert drawn.count("<- downlink 1.1") == len(calls)
        assert sum(call.sites for call in calls) == 4
        assert fr.explain(result.plan, calls, mermaid=True).count("contribution 1.1") == len(calls)
