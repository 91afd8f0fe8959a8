"""The section `ledger` of a configuration: what is refused with its fix, and the ledger that comes of it."""

import pytest

from fedray.accounting import PrivacyLedger
from fedray.config_build import Experiment
from fedray.config_check import problems
from fedray.config_explain import documented
from fedray.config_schema_ledger import Ledger


def found(**settings):
    given = {"path": None, "dataset": None, "epsilon": None, "delta": 1e-5, **settings}
    return [text for text in problems({"ledger": given, "runs_dir": "runs"}) if "ledger" in text]


def experiment(**settings):
    return Experiment(tree={"ledger": settings} if settings else {}, data=None, training=None, schedule=None,
                      passes=(), early_stop=None)


def test_runs_count_for_themselves_without_a_ledger():
    assert found() == [] and experiment().ledger() is None
    assert experiment(path=None, dataset=None, epsilon=None, delta=1e-5).ledger() is None


@pytest.mark.parametrize(("settings", "fix"), [
    ({"epsilon": 3.0}, "Fix: ledger.path=ledger.jsonl"),
    ({"path": "l.jsonl"}, "Fix: ledger.dataset="),
    ({"path": "l.jsonl", "dataset": "icu 1", "epsilon": 0.0}, "Fix: ledger.epsilon=8"),
    ({"delta": 1.0}, "Fix: ledger.delta=1e-5"),
])
def test_ledger_that_cannot_be_meant_is_refused_with_its_fix(settings, fix):
    (told,) = found(**settings)
    assert fix in told


def test_ledger_is_opened_with_its_budget(tmp_path):
    ledger = experiment(path=str(tmp_path / "l.jsonl"), dataset="icu 1", epsilon=3.0, delta=1e-6).ledger()
    assert isinstance(ledger, PrivacyLedger)
    assert (ledger.dataset, ledger.budget, ledger.delta) == ("icu 1", 3.0, 1e-6)


def test_every_setting_says_what_it_means():
    assert {name for name, (_, text) in documented(Ledger).items() if text} == {
        "path", "dataset", "epsilon", "delta"}
