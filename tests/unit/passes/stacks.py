"""Every compression pass, and the algorithms and the small model that the tests put under them."""

import fedray as fr
from tests.unit.runtime.toy import NUM_FEATURES, sites

P = fr.passes
PASSES = {
    "topk": lambda: P.topk(0.2),
    "randk": lambda: P.randk(0.2),
    "randk_unbiased": lambda: P.randk(0.2, error_feedback=False),
    "qsgd": lambda: P.qsgd(7),
    "qsgd_buckets": lambda: P.qsgd(7, bucket=10),
    "sign": lambda: P.sign(0.01, weights="uniform"),
    "scaled_sign": P.scaled_sign,
    "ef21": lambda: P.ef21(0.2),
    "ef21_broadcast": lambda: P.ef21_broadcast(0.2),
    "powersgd": lambda: P.powersgd(1),
    "bidirectional": lambda: P.bidirectional(P.topk(0.2), P.quantised_broadcast(15, bucket=10)),
}
MODEL = fr.learn.mlp(NUM_FEATURES, hidden=(16,))
LOCAL = fr.learn.sgd(MODEL, lr=0.1, epochs=1, batch_size=4)
NUM_SITES = 6
ALGORITHMS = {
    "fedavg": lambda: fr.algorithms.fedavg(LOCAL),
    "fedadam": lambda: fr.algorithms.fedavg(LOCAL, fr.learn.optimizer.adam(0.01)),
    "fedprox": lambda: fr.algorithms.fedprox(LOCAL, mu=0.1),
    "scaffold": lambda: fr.algorithms.scaffold(LOCAL, NUM_SITES),
    "ditto": lambda: fr.algorithms.ditto(LOCAL, prox=0.1),
}


def fitted(passes, algorithm="fedavg", rounds=2, look=None, **layout):
    schedule = fr.synchronous(cohort=1.0)
    with fr.simulate(sites(NUM_SITES), **layout) as federation:
        result = fr.fit(
            ALGORITHMS[algorithm](), federation, init=MODEL.init(0), rounds=rounds, passes=passes,
            schedule=schedule,
        )
        return result, look(federation) if look else None
