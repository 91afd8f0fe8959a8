"""Where two runs part: their settings, and the first round and value whose bits differ.

Every round's record holds a hash of each aggregate and of the server state, in the order in which they are
computed, so the first difference names the round and the value that is to blame.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedray import track
from fedray.errors import ConfigError
from fedray.rundir import RunDirectory

COURSE = (
    "status",
    "attempt",
    "asked",
    "counted",
)  # what else a round tells; its seconds and bytes may differ
SHOWN = 6  # differences in the course of the rounds
ABSENT = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two runs compare. `node` is the name of the first aggregate that differs ("" where all rounds
    agree).
    """

    settings: tuple[tuple[str, Any, Any], ...]
    machines: tuple[tuple[str, Any, Any], ...]
    course: tuple[tuple[str, Any, Any], ...]
    round: int | None
    node: str
    first: Any
    second: Any
    rounds: tuple[int, int]

    @property
    def is_same(self) -> bool:
        """Tell whether both did the same rounds with the same bits."""
        return self.round is None and self.rounds[0] == self.rounds[1]


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Difference:
    """Compare two run directories. Raises ConfigError where one is no run or has no recorded round."""
    left, right = RunDirectory.open(Path(a)), RunDirectory.open(Path(b))
    first_rows, second_rows = _rounds(left), _rounds(right)
    settings = _differing(_flat(yaml.safe_load(left.config_yaml)), _flat(yaml.safe_load(right.config_yaml)))
    machines = _differing(
        *(
            _flat(
                {
                    name: value
                    for name, value in run.env.items()
                    if name not in ("started", "name", "seed", "config_sha256")
                }
            )
            for run in (left, right)
        )
    )
    round, node, first, second = _first(first_rows, second_rows)
    return Difference(
        settings=settings,
        machines=machines,
        course=tuple(_course(first_rows, second_rows, round)),
        round=round,
        node=node,
        first=first,
        second=second,
        rounds=(_done(first_rows), _done(second_rows)),
    )


def _rounds(run: RunDirectory) -> dict[int, Mapping[str, Any]]:
    rows: dict[int, Mapping[str, Any]] = {row["round"]: row for row in track.read(run.path, "rounds")}
    if not rows:
        raise ConfigError(
            f"{run.path} has no recorded round, so there is nothing to compare. "
            "Fix: name a run with tracker=jsonl that finished at least one round"
        )
    return rows


def _done(rows: Mapping[int, Any]) -> int:
    return max(rows) + 1


def _first(
    a: Mapping[int, Mapping[str, Any]], b: Mapping[int, Mapping[str, Any]]
) -> tuple[int | None, str, Any, Any]:
    """Return (round, name, value in a, value in b) of the first hash that differs; None where none does."""
    for round in sorted(set(a) & set(b)):
        left, right = (rows[round].get("hashes") or {} for rows in (a, b))
        for name in dict.fromkeys([*left, *right]):
            if left.get(name) != right.get(name):
                return round, name, left.get(name, ABSENT), right.get(name, ABSENT)
    return None, "", ABSENT, ABSENT


def _course(
    a: Mapping[int, Mapping[str, Any]], b: Mapping[int, Mapping[str, Any]], last: int | None
) -> Iterator[tuple[str, Any, Any]]:
    """Yield how the course of the rounds up to `last` differs: who was asked and counted, who failed."""
    for round in sorted(set(a) & set(b)):
        if last is not None and round > last:
            return
        for name in COURSE:
            if a[round].get(name) != b[round].get(name):
                yield f"round {round + 1} {name}", a[round].get(name), b[round].get(name)
        failed = [
            sorted((item["site"], item["kind"]) for item in rows[round].get("failures") or ())
            for rows in (a, b)
        ]
        if failed[0] != failed[1]:
            yield f"round {round + 1} failures", _named(failed[0]), _named(failed[1])


def _named(failed: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{site} {kind}" for site, kind in failed) or "none"


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {at: value}
    return {
        key: item
        for name, child in value.items()
        for key, item in _flat(child, f"{at}.{name}" if at else str(name)).items()
    }


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    return tuple(
        (key, a.get(key, ABSENT), b.get(key, ABSENT))
        for key in sorted({*a, *b})
        if a.get(key, ABSENT) != b.get(key, ABSENT)
    )


def tell(found: Difference, a: str, b: str) -> list[str]:
    """Return a comparison in words, one line each."""
    lines = [f"A {a}", f"B {b}", *_section("settings", found.settings), *_section("machine", found.machines)]
    if found.course:
        lines += _section("course", found.course[:SHOWN])
    if found.round is not None:
        lines += [
            f"first difference: round {found.round + 1}, {found.node}",
            f"  A {found.first}",
            f"  B {found.second}",
        ]
        return [*lines, _before(found.round)]
    done = min(found.rounds)
    lines.append(
        f"no difference in {done} round{'s' if done > 1 else ''}: every aggregate and the server state "
        "have the same bits"
    )
    if not found.is_same:
        longer = "A" if found.rounds[0] > found.rounds[1] else "B"
        lines.append(f"{longer} has {abs(found.rounds[0] - found.rounds[1])} rounds more")
    return lines


def _before(round: int) -> str:
    if round == 0:
        return "  it is the first round: compare initial parameters, data and seed"
    return (
        f"  the {round} round{'s' if round > 1 else ''} before {'have' if round > 1 else 'has'} the same bits"
    )


def _section(title: str, rows: Sequence[tuple[str, Any, Any]]) -> list[str]:
    if not rows:
        return [f"{title}: the same"]
    return [f"{title}:", *(f"  {key}: {first} | {second}" for key, first, second in rows)]
