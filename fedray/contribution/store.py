"""What `fedray contribution` leaves in a run's directory, in a folder of its own.

    contribution/replays.jsonl        one line per training, written when it ends: a later call goes on
    contribution/contribution.json    what the methods say, and the value of taking part
    contribution/contribution.parquet the same as rows; and contribution.png where matplotlib is installed

A method that is asked again takes the place of what it said before; the others stay. All of them are about
one metric of one split: another one starts anew, from the same trainings where it can.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedray.contribution.record import Contribution, TakingPart
from fedray.contribution.replays import Replay
from fedray.track import plain, write_parquet

FILE = "contribution"
ORDER = ("shapley", "tmc_shapley", "gtg_shapley", "leave_one_out")  # in which methods stand beside each other


@dataclass(frozen=True, slots=True)
class Store:
    """The folder of a run's contribution. `about` is what replays must have in common to be used again."""

    folder: Path
    about: Mapping[str, Any]

    def replays(self) -> list[Replay]:
        """Return the replays of earlier calls that are about the same; a line that a kill cut off is none."""
        path = self.folder / "replays.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        rows = [json.loads(line) for line in lines if line]
        mine = [row for row in rows if row.pop("about") == dict(self.about)]
        return [Replay(**{**row, "sites": tuple(row["sites"])}) for row in mine]

    def add(self, replay: Replay) -> None:
        """Append a replay, in the place of a line that a kill cut off."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "replays.jsonl").open("ab") as file:
            if file.tell():
                file.truncate((self.folder / "replays.jsonl").read_bytes().rfind(b"\n") + 1)
            file.write(json.dumps(plain({**asdict(replay), "about": dict(self.about)})).encode() + b"\n")

    def write(
        self, found: Sequence[Contribution], taking_part: TakingPart | None, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write the files and return what contribution.json holds."""
        self.folder.mkdir(exist_ok=True)
        before = self._before(facts)
        methods = {each["method"]: each for each in before.get("methods", [])}
        methods |= {each.method: plain({**asdict(each), "rest": each.rest}) for each in found}
        told = {
            **facts,
            "methods": [methods[name] for name in ORDER if name in methods],
            "taking_part": plain(asdict(taking_part)) if taking_part else before.get("taking_part"),
        }
        self._replace("json", (json.dumps(plain(told), indent=1) + "\n").encode())
        rows = [row for record in told["methods"] for row in _rows(record)]
        write_parquet(self.folder / f"{FILE}.parquet", rows)
        return told

    def picture(self, told: Mapping[str, Any]) -> Path | None:
        """Write the figure and return its path; None without the extra `report`."""
        from fedray.report import page

        if not page.is_available():
            return None
        from fedray.report import figures

        return self._replace("png", figures.contribution_png(told))

    def _before(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was found before about the same metric of the same rows."""
        path = self.folder / f"{FILE}.json"
        before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return before if all(before.get(name) == facts[name] for name in ("metric", "split")) else {}

    def _replace(self, kind: str, content: bytes) -> Path:
        target = self.folder / f"{FILE}.{kind}"
        temporary = target.with_suffix(f".{kind}.part")
        temporary.write_bytes(content)
        os.replace(temporary, target)
        return target


def _rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a method's values as rows: method, site, value, error."""
    errors = record["errors"]
    return [
        {"method": record["method"], "site": site, "value": value, "error": errors.get(site)}
        for site, value in record["values"].items()
    ]
