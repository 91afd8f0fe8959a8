"""`fedray privacy`: what it prints, its JSON, and the exit codes of a ledger that was touched."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fedray import cli
from fedray.accounting import Mechanism, PrivacyLedger, accountant
from fedray.accounting.matrix import sensitivity
from fedray.accounting.planning import MODES
from fedray.accounting.spent import Account

SITE = Mechanism(kind="gaussian", noise_multiplier=10.0, unit="site", noise_by="server", trusted="server")
NEEDS = {"site": ["--cohort", "10", "--population", "100"], "patient": ["--units", "500", "--batch", "64"]}


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["privacy", "plan", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    made = PrivacyLedger(tmp_path / "ledger.jsonl", dataset="icu 1")
    number = made.open_run("r1", [Account(SITE, (made.name_of("h1"), made.name_of("h2")))])
    for round in range(3):
        made.charge(number, round)
    made.close()
    return tmp_path / "ledger.jsonl"


@pytest.mark.parametrize("mode", MODES)
def test_plan_of_every_mode_says_whom_it_protects_and_who_is_trusted(
    mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [mode, "--rounds", "50", "--noise", "5", *NEEDS[MODES[mode].unit]]
    assert cli.main(["privacy", "plan", *words]) == 0
    told = capsys.readouterr().out
    assert f"protects a {MODES[mode].unit} (add or remove one unit)" in told
    assert f"trusted with plaintext: {MODES[mode].trusted}" in told


def test_plan_gives_the_noise_for_an_epsilon_and_the_epsilon_of_a_noise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("site_dp", "--rounds", "50", "--cohort", "200")
    noise = planned(capsys, *words, "--epsilon", "8")["planned"][0]["noise_multiplier"]
    assert noise == pytest.approx(4.244, abs=5e-4)
    back = planned(capsys, *words, "--noise", str(noise))["planned"][0]["epsilon"]
    assert back == pytest.approx(8.0)


def test_plan_says_where_noise_drowns_what_is_learnt(capsys: pytest.CaptureFixture[str]) -> None:
    rows = planned(capsys, "site_dp", "--rounds", "50", "--cohort", "200", "--params", "20000")["planned"]
    assert [row["is_hopeless"] for row in rows] == [True, False, False, False]
    assert rows[2]["noise_norm"] == pytest.approx(3.0, abs=0.01)


def test_plan_over_all_sites_costs_what_one_hospital_pays(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("dp_accounting")
    words = ("distributed_record", "--rounds", "10000", "--rate", "0.01", "--noise", "1.1")
    assert planned(capsys, *words)["planned"][0]["epsilon"] == pytest.approx(5.19262, abs=1e-3)


def test_plan_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["privacy", "plan", "site_dp", "--rounds", "50"]) == cli.BAD_INPUT
    assert "--cohort" in capsys.readouterr().err
    assert cli.main(["privacy", "plan", "sitedp", "--rounds", "50"]) == cli.BAD_INPUT
    assert "one of record" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [("site_dp", "--rounds", "0", "--cohort", "10"), ("site_dp", "--rounds", "5", "--cohort", "0"),
     ("site_dp", "--rounds", "5", "--cohort", "10", "--noise", "-1"),
     ("site_dp", "--rounds", "5", "--cohort", "10", "--delta", "2"),
     ("site_dp", "--rounds", "5", "--cohort", "10", "--population", "5", "--poisson"),
     ("record", "--rounds", "5", "--rate", "2"), ("record", "--rounds", "5", "--rate", ".1", "--steps", "0")],
)  # fmt: skip
def test_plan_of_numbers_that_cannot_be_meant_is_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert cli.main(["privacy", "plan", *words]) == cli.BAD_INPUT
    assert "a plan: " in capsys.readouterr().err


def test_plan_of_turns_reckons_with_the_bands_of_the_pass(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("site_dp_matrix", "--rounds", "30", "--cohort", "10", "--noise", "1", "--params", "10")
    for population, bands in ((30, 1), (40, 4)):  # three rounds apart gain next to nothing
        length = planned(capsys, *words, "--population", str(population))["planned"][0]["noise_norm"]
        moved = sensitivity(bands, participations=math.ceil(300 / population))
        assert length == pytest.approx(moved / 10 * math.sqrt(10))


def test_show_tells_epsilon_by_unit_and_run(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["privacy", "show", str(ledger), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    spent = accountant.epsilon({SITE: 3}, 1e-5)
    assert [row["epsilon"] for row in told["accounts"]] == [spent, spent] and told["runs"] == {"r1": spent}
    assert cli.main(["privacy", "show", str(ledger)]) == 0
    assert f"{spent:.4f}  of 2 data sets, unit: site" in capsys.readouterr().out


def test_verify_passes_a_whole_ledger_and_fails_one_that_was_edited(
    ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["privacy", "verify", str(ledger)]) == 0
    ledger.write_text(ledger.read_text().replace('"round":1', '"round":9'))
    assert cli.main(["privacy", "verify", str(ledger)]) == 1
    assert "E_LEDGER: entry 3 " in capsys.readouterr().out


def test_verify_misses_the_end_that_a_run_has_seen(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries, head = PrivacyLedger(ledger, is_read_only=True).head
    told = {"privacy": {"ledger": {"entries": entries, "head": head}}}
    (ledger.parent / "result.json").write_text(json.dumps(told))
    assert cli.main(["privacy", "verify", str(ledger), "--run", str(ledger.parent)]) == 0
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))
    ledger.with_name("ledger.jsonl.head").unlink()
    assert cli.main(["privacy", "verify", str(ledger), "--run", str(ledger.parent)]) == 1
    assert f"entry {entries - 1} is not the one" in capsys.readouterr().out


def test_ledger_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert cli.main(["privacy", "show", str(tmp_path / "none.jsonl")]) == cli.BAD_INPUT
    assert list(tmp_path.iterdir()) == []
