"""The studies that are trained on labelled nodes, and in process for their bits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fedray as fr
from tests.equivalence import study

STUDIES = ("fedavg", "scaffold", "ditto", "term", "hierfavg", "masked")
ROUNDS, ROUNDS_AWAY = 3, 6
GONE, BACK = 2, 4  # the rounds that are without a node
hospitals = study.hospitals
HOMES = {site: "aabbcc"[number % 6] for number, site in enumerate(sorted(hospitals()))}
REGION = {"a": "eu", "b": "eu", "c": "us"}
REGIONS = {name: [site for site, home in HOMES.items() if REGION[home] == name] for name in ("eu", "us")}
ON_B = tuple(site for site, home in HOMES.items() if home == "b")


def site_map(folder: Path, without: str = "") -> Path:
    """Write the map of the study; `without` is the host of two sites of node a, which is not there."""
    homes = dict(HOMES)
    if without:
        homes |= dict.fromkeys([site for site, home in homes.items() if home == "a"][:2], without)
    lines = ["regions:", "  eu: {aggregator: {fedray.role: regional}}", "  us: {}", "sites:"]
    for site, home in homes.items():
        region = f"region: {REGION[home]}, " if home in REGION else ""
        lines.append(f"  {site}: {{{region}labels: {{fedray.host: {home}}}}}")
    path = folder / f"map{without}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_tables(folder: Path) -> tuple[Path, Path]:
    """Write two sites' tables, one where the map says, one where its node's environment does; return the
    contract and the map.
    """
    contract, rows = folder / "contract.yaml", "".join(f"{row},{row % 2}\n" for row in range(40))
    table = f"age,died\n{rows}"
    contract.write_text("name: vitals\noutcome: died\ncolumns: [{name: age}, {name: died, role: outcome}]\n")
    (folder / "node" / "two").mkdir(parents=True)
    (folder / "one.csv").write_text(table)
    (folder / "node" / "two" / "rows.csv").write_text(table + "40,0\n41,1\n" * 10)
    path = folder / "own.yaml"
    path.write_text(f"sites:\n  one: {{data: {folder}/one.csv, labels: {{fedray.host: a}}}}\n"
                    "  two: {labels: {fedray.host: b}}\n")
    return contract, path


def train(name: str, federation: Any, rounds: int = ROUNDS, local: Any = None, **options: Any) -> Any:
    masked = name == "masked"
    kind = "real" if federation.where == "ray" else "ideal"
    passes = [fr.passes.secure_sum(kind, min_cohort=3)] if masked else []
    options.setdefault("schedule", fr.synchronous(cohort=1.0, quorum=0.3))
    return fr.fit(study.algorithm("fedavg" if masked else name, local), federation,
                  init=study.model().init(0), rounds=rounds, seed=5, passes=passes, **options)


def here(name: str, regions: Any = REGIONS, packs: int | None = None, **options: Any) -> Any:
    """Return the result in process."""
    with fr.simulate(hospitals(), regions=regions, packs=packs) as federation:
        return train(name, federation, **options)


@dataclass(frozen=True)
class Fails:
    """A local update that fails at the sites of node b in the rounds that are without it."""

    inner: Any

    @property
    def lr(self) -> Any:
        return self.inner.lr

    def __call__(self, params: Any, data: Any, rng: Any, **extra: Any) -> Any:
        self._fall(rng)
        return self.inner(params, data, rng, **extra)

    def rows(self, group: Any, params: Any, data: Any, rng: Any, **extra: Any) -> Any:
        """Train the sites of a group, or fail where one of them is to."""
        for key in rng.value.items:
            self._fall(key)
        return self.inner.rows(group, params, data, rng, **extra)

    def _fall(self, rng: Any) -> None:
        if rng.site in ON_B and GONE <= rng.round < BACK:
            raise ArithmeticError("away")
