"""What tests of passes for a whole site share: a counted source of noise, canaries, and toy algorithms."""

from dataclasses import dataclass

import torch

import fedray as fr
from fedray import noise, tree
from fedray.data.site import SiteData

KEY = bytes(range(32))
P = fr.passes
SITE_PASSES = {
    "site_dp": lambda **more: P.site_dp(1.0, 0.5, **more),
    "site_dp_adaptive": lambda **more: P.site_dp_adaptive(1.0, 0.5, mark_std=2.0, **more),
    "site_dp_matrix": lambda **more: P.site_dp_matrix(1.0, 0.5, rounds=2, population=more["cohort"], **more),
    "site_dp_local": lambda **more: P.site_dp_local(1.0, 0.5, **more),
}


@dataclass(frozen=True)
class Same:
    """A source that starts its keystream anew at each call: equal draws everywhere. It pickles."""

    key: bytes = KEY

    def __call__(self, num_bytes):
        return noise.keystream(self.key)(num_bytes)


@dataclass(frozen=True)
class Silent:
    """A source whose bits are all ones: normal numbers below 2e-8 of their standard deviation."""

    def __call__(self, num_bytes):
        return b"\xff" * num_bytes


@dataclass(frozen=True)
class Given:
    """A local update that is the site's own column, whatever the model."""

    def __call__(self, x, data):
        return tree.flatten({"v": data.train["x"][0].to(x["v"].dtype)}, x.schema)


def echo(name="delta"):
    """An algorithm whose server state becomes the mean of what the sites hold."""

    def round(server, site):
        return fr.Outputs(server=fr.mean(fr.map(Given(), fr.broadcast(server), site.data), name=name))

    return fr.Algorithm(lambda params: params, round, name="echo")


def holders(rows):
    """Sites that hold one row of numbers each."""
    return {f"s{i:03d}": SiteData({"x": row.view(1, -1), "y": torch.zeros(1)}) for i, row in enumerate(rows)}


def released(rows, passes, rounds=1, schedule=None, algorithm=None, **layout):
    """Return the server's vector after some rounds of `echo`, and the result."""
    with fr.simulate(holders(rows), **layout) as federation:
        result = fr.fit(
            algorithm or echo(), federation, init={"v": torch.zeros(rows.shape[1], dtype=rows.dtype)},
            rounds=rounds, passes=passes, schedule=schedule or fr.synchronous(), seed=3,
        )  # fmt: skip
    return result.state["v"], result
