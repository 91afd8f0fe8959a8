"""The privacy ledger: what it counts, what it refuses, and what becomes of a file that was touched."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedray.accounting import Mechanism, PrivacyLedger, accountant
from fedray.accounting.chain import START, link
from fedray.accounting.spent import Account, largest
from fedray.errors import BudgetError, LedgerError, StorageError
from tests.unit.disks import fill, small_disk

SITE = Mechanism(kind="gaussian", noise_multiplier=10.0, unit="site", noise_by="server", trusted="server")
PATIENT = Mechanism(kind="sampled_gaussian", noise_multiplier=2.0, sampling_rate=0.1, unit="patient",
                    noise_by="sites", trusted="nobody")
FITS = max(n for n in range(100) if accountant.epsilon({SITE: n}, 1e-5) <= 1.0)  # rounds of SITE
MATRIX = replace(SITE, kind="matrix", rounds=20, sensitivity=3.0)


def ledger_in(folder: Path, **settings: Any) -> PrivacyLedger:
    return PrivacyLedger(folder / "ledger.jsonl", **{"dataset": "icu 1", **settings})


def opened(ledger: PrivacyLedger, run: str = "r1", mechanism: Mechanism = SITE, rounds: int | None = None,
           sites: tuple[str, ...] = ("h1", "h2")) -> int:
    return ledger.open_run(run, [Account(mechanism, tuple(map(ledger.name_of, sites)))], rounds)


def charged(folder: Path, rounds: int = 3, **settings: Any) -> Path:
    ledger = ledger_in(folder, **settings)
    number = opened(ledger)
    for round in range(rounds):
        ledger.charge(number, round)
    ledger.close()
    return folder / "ledger.jsonl"


def test_chain_is_that_of_the_known_answer() -> None:
    first = link(START, b'{"seq":0,"ev":"join"}')
    assert first.hex() == "2e95a6954cef3cc0ad8b6c61f1ab149cbfcdb7f0b710c9078129754c0baada4c"
    second = link(first, b'{"seq":1,"ev":"round","r":0}')
    assert second.hex() == "4086beff547baaf67e7428a4732597d2479ad28cc1574238d4a56f12171bc9dc"


def test_ledger_tells_the_epsilon_of_all_its_charges() -> None:
    ledger = PrivacyLedger()
    number = opened(ledger)
    for round in range(5):
        ledger.charge(number, round)
    assert ledger.epsilon() == accountant.epsilon({SITE: 5}, 1e-5)


def test_ledger_read_again_has_counted_the_same(tmp_path: Path) -> None:
    path = charged(tmp_path)
    assert PrivacyLedger(path).epsilon() == accountant.epsilon({SITE: 3}, 1e-5)


def test_studies_on_the_same_data_add_up_and_are_told_apart(tmp_path: Path) -> None:
    charged(tmp_path)
    ledger = ledger_in(tmp_path)
    ledger.charge(opened(ledger, "r2", replace(SITE, noise_multiplier=5.0)), 0)
    alone = accountant.epsilon({replace(SITE, noise_multiplier=5.0): 1}, 1e-5)
    assert ledger.epsilon(run="r2") == alone
    assert ledger.epsilon() == accountant.epsilon({SITE: 3, replace(SITE, noise_multiplier=5.0): 1}, 1e-5)


def test_another_version_of_the_data_is_another_account(tmp_path: Path) -> None:
    charged(tmp_path)
    ledger = ledger_in(tmp_path, dataset="icu 2")
    ledger.charge(opened(ledger, "r2"), 0)
    assert ledger.epsilon() == accountant.epsilon({SITE: 3}, 1e-5)


def test_another_unit_is_another_account() -> None:
    ledger = PrivacyLedger()
    ledger.charge(opened(ledger), 0)
    ledger.charge(opened(ledger, "r2", PATIENT), 0)
    site, patient = accountant.epsilon({SITE: 1}, 1e-5), accountant.epsilon({PATIENT: 1}, 1e-5)
    name = ledger.name_of("h1")
    found = ledger.accounts()
    assert found[name, "site"] == site and found[name, "patient"] == patient


def test_site_that_was_not_asked_is_not_charged() -> None:
    ledger = PrivacyLedger()
    ledger.charge(opened(ledger, mechanism=PATIENT), 0, {ledger.name_of("h2")})
    assert [name for name, _ in ledger.accounts()] == [ledger.name_of("h2")]


def test_matrix_is_paid_for_once_and_a_round_tried_again_costs_its_row() -> None:
    ledger = PrivacyLedger()
    number = opened(ledger, mechanism=MATRIX)
    for round in (0, 1, 2, 2):
        ledger.charge(number, round)
    again = replace(SITE, noise_multiplier=30.0)
    assert ledger.epsilon() == accountant.epsilon({MATRIX: 1, again: 1}, 1e-5)


def test_matrix_that_goes_on_beyond_its_rounds_is_paid_for_again() -> None:
    ledger = PrivacyLedger()
    number = opened(ledger, mechanism=MATRIX)
    for round in range(21):
        ledger.charge(number, round)
    assert ledger.epsilon() == accountant.epsilon({MATRIX: 2}, 1e-5)


def test_names_in_the_ledger_tell_neither_site_nor_data(tmp_path: Path) -> None:
    text = charged(tmp_path, dataset="icu of mercy hospital").read_text()
    assert "h1" not in text and "mercy" not in text and str(tmp_path) not in text


def test_round_that_would_overspend_is_refused_noted_and_not_charged(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, epsilon=1.0)
    number = opened(ledger)
    for round in range(FITS):
        ledger.charge(number, round)
    with pytest.raises(BudgetError, match=r"E_BUDGET: round \d+ would bring epsilon to 1\.0"):
        ledger.charge(number, FITS)
    assert ledger.epsilon() == accountant.epsilon({SITE: FITS}, 1e-5)
    last = json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[-1])["entry"]
    assert (last["ev"], last["code"], last["round"]) == ("refused", "E_BUDGET", FITS)


def test_run_that_cannot_end_is_refused_before_it_starts(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, epsilon=1.0)
    with pytest.raises(BudgetError, match=f"{FITS} rounds fit. Fix: rounds={FITS}"):
        opened(ledger, rounds=100)
    opened(ledger, rounds=FITS)


@pytest.mark.parametrize("ahead", [1, 5, 100])
def test_looking_rounds_ahead_refuses_the_same_round(ahead: int) -> None:
    ledger = PrivacyLedger(epsilon=1.0)
    number = opened(ledger)
    for round in range(FITS):
        ledger.charge(number, round, ahead=ahead)
    with pytest.raises(BudgetError):
        ledger.charge(number, FITS, ahead=ahead)


def test_largest_epsilon_of_many_histories_is_found_without_accounting_all() -> None:
    pytest.importorskip("dp_accounting")
    rates = (0.02, 0.1, 0.11, 0.05)
    made = [accountant.steps_of({replace(PATIENT, sampling_rate=rate): 10}) for rate in rates]
    assert largest(made, 1e-5) == max(accountant.epsilon(steps, 1e-5) for steps in made)


def cut(lines: list[str]) -> str:
    return "".join(lines[:-1]) + lines[-1][:40]


@pytest.mark.parametrize(("touch", "entry"), [
    (lambda lines: "".join(lines[:2] + lines[3:]), 2),
    (lambda lines: "".join([lines[0], lines[2], lines[1], *lines[3:]]), 1),
    (lambda lines: "".join(lines).replace('"noise_multiplier":10.0', '"noise_multiplier":90.0'), 1),
    (lambda lines: "".join(lines).replace('"round":1', '"round": 1'), 3),
    (lambda lines: "".join([*lines, lines[-1]]), 5),
    (lambda lines: "".join(lines[:-1]), 4),
    (cut, 4),
    (lambda lines: "", 0),
], ids=["deleted", "reordered", "edited", "spaced", "repeated", "truncated", "cut in a line", "emptied"])
def test_ledger_that_was_touched_does_not_open_and_names_the_entry(
    tmp_path: Path, touch: Callable[[list[str]], str], entry: int
) -> None:
    path = charged(tmp_path)
    path.write_text(touch(path.read_text().splitlines(keepends=True)))
    with pytest.raises(LedgerError, match=f"E_LEDGER: entry {entry} "):
        PrivacyLedger(path)


def test_ledger_that_was_removed_is_missed(tmp_path: Path) -> None:
    charged(tmp_path).unlink()
    with pytest.raises(LedgerError, match="entry 0 .* is missing"):
        ledger_in(tmp_path)


@pytest.mark.parametrize("text", ["", "xx", "{}", "[]"])
def test_ledger_whose_last_link_beside_it_was_spoilt_does_not_open(tmp_path: Path, text: str) -> None:
    path = charged(tmp_path)
    path.with_name("ledger.jsonl.head").write_text(text)
    with pytest.raises(LedgerError, match="E_LEDGER: entry 5 .*head"):
        PrivacyLedger(path)


def test_smaller_delta_of_a_later_run_is_that_at_which_its_rounds_must_fit(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, epsilon=1.0)
    ledger.charge(opened(ledger), 0, ahead=FITS)  # looks up all of them at 1e-5
    strict = replace(SITE, delta=1e-12)
    with pytest.raises(BudgetError, match="delta 1e-12"):
        opened(ledger, "r2", strict, rounds=FITS - 1)
    number = opened(ledger, "r3", strict)
    fits = max(n for n in range(1, 100) if accountant.epsilon({SITE: n}, 1e-12) <= 1.0)
    for round in range(fits - 1):
        ledger.charge(number, round)
    with pytest.raises(BudgetError, match="delta 1e-12"):
        ledger.charge(number, fits)


def test_ledger_that_was_written_anew_is_found_out(tmp_path: Path) -> None:
    path = charged(tmp_path)
    head = path.with_name("ledger.jsonl.head").read_text()
    path.unlink()
    path.with_name("ledger.jsonl.head").unlink()
    charged(tmp_path, dataset="another")
    path.with_name("ledger.jsonl.head").write_text(head)
    with pytest.raises(LedgerError, match="entry 4 .* written anew"):
        PrivacyLedger(path)


def test_ledger_that_is_cut_while_it_is_open_charges_no_more(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    number = opened(ledger)
    os.truncate(tmp_path / "ledger.jsonl", 10)
    with pytest.raises(LedgerError, match="shorter than it was"):
        ledger.charge(number, 0)


def test_crash_before_the_head_was_written_loses_no_charge(tmp_path: Path) -> None:
    path = charged(tmp_path, rounds=2)
    head = path.with_name("ledger.jsonl.head").read_text()
    charged(tmp_path, rounds=2)
    path.with_name("ledger.jsonl.head").write_text(head)
    assert PrivacyLedger(path).epsilon() == accountant.epsilon({SITE: 4}, 1e-5)


def test_two_ledgers_on_one_file_see_each_others_charges(tmp_path: Path) -> None:
    one, other = ledger_in(tmp_path, epsilon=1.0), ledger_in(tmp_path, epsilon=1.0)
    numbers = opened(one, "r1"), opened(other, "r2")
    for round in range(FITS):
        (one, other)[round % 2].charge(numbers[round % 2], round)
    with pytest.raises(BudgetError):
        one.charge(numbers[0], FITS)


def test_reading_alone_writes_nothing(tmp_path: Path) -> None:
    path = charged(tmp_path)
    before = path.read_bytes()
    path.chmod(0o400)
    assert PrivacyLedger(path, is_read_only=True).epsilon() > 0
    assert path.read_bytes() == before


CHARGE_THEN_DIE = """
    import os, signal, sys
    from fedray.accounting import PrivacyLedger
    from fedray.accounting.mechanism import Mechanism
    from fedray.accounting.spent import Account
    ledger = PrivacyLedger(sys.argv[1], dataset="icu 1")
    made = Mechanism(kind="gaussian", noise_multiplier=10.0, unit="site", noise_by="server", trusted="server")
    number = ledger.open_run("r2", [Account(made, (ledger.name_of("h1"), ledger.name_of("h2")))])
    for round in range(int(sys.argv[2])):
        ledger.charge(number, round)
    if sys.argv[3] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    open(sys.argv[1] + ".released", "w").close()
"""


def run_apart(path: Path, rounds: int, end: str) -> "subprocess.Popen[bytes]":
    program = textwrap.dedent(CHARGE_THEN_DIE)
    return subprocess.Popen([sys.executable, "-c", program, str(path), str(rounds), end])


def test_process_killed_between_charge_and_release_has_paid(tmp_path: Path) -> None:
    path = charged(tmp_path, rounds=1)
    assert run_apart(path, 1, "die").wait() == -signal.SIGKILL
    assert not path.with_name("ledger.jsonl.released").exists()
    assert PrivacyLedger(path).epsilon() == accountant.epsilon({SITE: 2}, 1e-5)


def test_two_processes_at_once_lose_no_charge(tmp_path: Path) -> None:
    path = charged(tmp_path, rounds=0)
    both = [run_apart(path, 20, "live") for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert PrivacyLedger(path).epsilon() == accountant.epsilon({SITE: 40}, 1e-5)


def test_full_disk_takes_no_part_of_a_charge_and_the_ledger_counts_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", 64) as folder:
        ledger = ledger_in(folder)
        number = opened(ledger, sites=tuple(f"h{site}" for site in range(150)))
        before = (folder / "ledger.jsonl").read_bytes()
        filler = fill(folder)
        refused = []
        for round in range(40):  # the last page of the file takes the first of them
            try:
                ledger.charge(number, round)
            except StorageError as error:
                refused.append(str(error))
        assert refused and all("nothing may be released" in told for told in refused)
        assert (folder / "ledger.jsonl").read_bytes().startswith(before)
        filler.unlink()
        ledger.charge(number, 40)
        entries = len((folder / "ledger.jsonl").read_text().splitlines())
        again = PrivacyLedger(folder / "ledger.jsonl", dataset="icu 1")
        assert again.head == ledger.head and again.head[0] == entries
