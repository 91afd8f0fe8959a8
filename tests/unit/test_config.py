"""Composition, presets, the check that lists every problem, and `--explain`."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from fedray import config
from fedray.config import check, compose, compose_run, explain
from fedray.config_explain import documented
from fedray.config_schema import SCHEMAS, Config
from fedray.config_targets import locate
from fedray.errors import ConfigError

# not read by the factory, or without a default there
OF_THE_RUN = {"allow_empty", "standardise", "labelled", "pooled", "unlabelled"}
OWN_DEFAULTS = {"lr", "mu", "prox", "vocabulary", "batch_size", "unit"}
PRESETS = sorted(path.stem for path in (config.conf_folder() / "experiment").glob("*.yaml"))


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(compose(*overrides))
    return caught.value.problems


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_and_passes_the_check(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(compose(f"experiment={preset}"))


@pytest.mark.parametrize(("name", "mended"), [
    ("a/b", "a-b"), ("../x", "x"), (".hidden", "hidden"), ("two words", "two-words"), ("/", "run"),
    ("''", "run")])
def test_name_that_is_no_folder_of_its_own_is_refused(name, mended):
    (problem,) = problems_of(f"name={name}")
    assert problem.startswith("name=") and problem.endswith(f"Fix: name={mended}")


def test_name_may_have_letters_digits_points_dashes_and_underscores():
    check(compose("name=7.icu-mortality_v2"))


def test_presets_are_those_promised():
    assert {"icu_mortality", "eicu_demo", "heart_disease", "digits", "debug", "none"} <= set(PRESETS)


def test_own_values_come_first_and_the_preset_last():
    defaults = yaml.safe_load((config.conf_folder() / "config.yaml").read_text())["defaults"]
    assert defaults[:2] == ["_schema/config", "_self_"]
    assert defaults[-1] == {"experiment": "icu_mortality"}


def test_preset_wins_over_the_defaults_and_the_command_line_over_the_preset():
    assert compose("experiment=none").rounds == 50
    assert compose("experiment=debug").rounds == 2
    assert compose("experiment=debug", "rounds=7").rounds == 7


def test_group_on_the_command_line_wins_over_the_preset():
    preset = compose("experiment=debug")
    chosen = compose("experiment=debug", "runtime=ray_local", "model=mlp")
    assert (preset.runtime.kind.value, preset.model._target_) == ("in_process", "fedray.learn.logistic")
    assert (chosen.runtime.kind.value, chosen.model._target_) == ("ray", "fedray.learn.mlp")


@pytest.mark.parametrize("group", sorted(SCHEMAS))
def test_every_option_starts_from_the_schema_of_its_name(group):
    options = {path.stem for path in (config.conf_folder() / group).glob("*.yaml")}
    assert options == set(SCHEMAS[group])
    for option in options:
        text = (config.conf_folder() / group / f"{option}.yaml").read_text()
        first, own, *chosen = yaml.safe_load(text)["defaults"]
        assert (first, own) == (f"_schema/{option}", "_self_")
        chooses = group == "algorithm" and option in ("cyclic", "split")  # their schedule
        assert bool(chosen) == chooses


def test_every_setting_is_documented():
    schemas = [Config, *(schema for options in SCHEMAS.values() for schema in options.values())]
    silent = [f"{schema.__name__}.{item.name}" for schema in schemas for item in fields(schema)
              if item.name != "_target_" and not documented(schema)[item.name][1]]
    assert not silent


def test_all_wrong_overrides_are_listed_at_once_each_with_its_fix():
    found = problems_of("rounds=many", "local.lrr=1", "algorithm=fedprx", "schedule.sampling=unifrm",
                        "schedule.quorum=1.5", "experiment=icu_mortalty", "nonsense")
    fixes = {re.split("[= ]", text)[0].strip("'"): text.split("Fix: ")[1] for text in found}
    assert fixes["local.lrr"] == "local.lr=1"
    assert fixes["algorithm"] == "algorithm=fedprox"
    assert fixes["schedule.sampling"] == "schedule.sampling=uniform"
    assert fixes["schedule.quorum"] == "schedule.quorum=0.8"
    assert fixes["experiment"] == "experiment=icu_mortality"
    assert {"rounds", "nonsense"} <= set(fixes)
    assert len(found) == 7


def test_nearest_spelling_is_suggested():
    nearest = {"schedul.quorum=0.5": "schedule.quorum=0.5", "algoritm=fedavg": "algorithm=fedavg",
               "algorithm.lr=0.3": "algorithm=fedsgd algorithm.lr=0.3", "experiment=null": "experiment=none",
               "runtime=ray": "runtime=ray_local", "model.hiden=[3]": "model=mlp model.hidden=[3]",
               "local.batchsize=8": "local.batch_size=8"}
    found = problems_of(*nearest)
    assert len(found) == len(nearest)
    for override, suggestion in nearest.items():
        key = override.split("=")[0]
        assert any(key in text and f"Fix: {suggestion}" in text for text in found), override


@pytest.mark.parametrize("overrides", [
    ("rounds=0", "seed=-1", "local.lr=-1", "local.batch_size=0", "data.scale=0", "schedule.quorum=0",
     "schedule.cohort=0", "allow=[os]", "++surprise.x=1"),
    ("local.lr=fast", "schedule.cohort=1.5", "schedule.wait_for=300"), ("schedule.cohort=all",),
    ("schedule.cohort=209",)])
def test_value_out_of_range_is_named(overrides):
    found = problems_of(*overrides)
    for override in overrides:
        where = override.lstrip("+").split("=")[0].removesuffix(".x")
        assert any(text.startswith(where) and "Fix: " in text for text in found), (override, found)


@pytest.mark.parametrize(("option", "setting"), [
    ("topk", "compression.fraction=0"), ("powersgd", "compression.rank=0"), ("sign", "compression.lr=0"),
    ("qsgd", "compression.bucket=0"), ("bidirectional", "compression.down.levels=0")])
def test_value_of_a_pass_out_of_range_is_named(option, setting):
    found = problems_of(f"compression={option}", "algorithm.weighted=false", setting)
    assert [text.startswith(setting.split("=")[0]) and "Fix: " in text for text in found] == [True]


@pytest.mark.parametrize(("option", "setting"), [
    ("krum", "robustness.attackers=0.5"), ("nnm", "robustness.attackers=-1"),
    ("rfa", "robustness.iterations=0"), ("bucketing", "robustness.size=0"),
    ("quarantine", "robustness.most=0.5")])
def test_value_of_a_robust_rule_out_of_range_is_named(option, setting):
    found = problems_of(f"robustness={option}", setting)
    assert [text.startswith(setting.split("=")[0]) and "Fix: " in text for text in found] == [True]


def test_a_robust_rule_is_built_with_the_rule_that_it_wraps():
    from fedray.passes import krum, nnm, quarantine, rfa

    def passes(*overrides):
        return config.build(compose("data.num_sites=6", "data.scale=0.01", *overrides)).passes

    (made,) = passes("robustness=nnm", "robustness.attackers=1", "robustness.then.attackers=1",
                     "robustness.then._target_=fedray.passes.krum")
    assert made == nnm(1, krum(1))
    (watched,) = passes("robustness=quarantine", "robustness.strikes=2")
    assert watched.__name__ == quarantine(rfa(), strikes=2).__name__


def test_a_vote_beside_weights_is_refused_with_both_ways_out():
    (found,) = problems_of("compression=sign")
    assert "Fix: algorithm.weighted=false, or compression.weights=uniform" in found
    check(compose("compression=sign", "compression.weights=uniform"))


def test_value_that_is_not_there_is_named():
    found = problems_of("runtime=ray_cluster", "data=csv")
    assert all(any(text.startswith(where) and "Fix: " in text for text in found)
               for where in ("runtime.address", "data.path"))


@pytest.mark.parametrize("cohort", ["1", "208", "0.5", "1.0"])
def test_cohort_is_a_share_with_a_point_and_a_number_without(cohort):
    check(compose(f"schedule.cohort={cohort}"))


def test_cyclic_brings_its_schedule_and_refuses_another():
    cyclic = compose("algorithm=cyclic").schedule
    assert (cyclic.cohort, cyclic.sampling.value) == (1, "cyclic")
    assert compose("algorithm=cyclic", "schedule.sampling=shuffled").schedule.cohort == 1
    assert problems_of("algorithm=cyclic", "schedule=synchronous") == [
        "algorithm=cyclic takes the model to one site a round. Fix: schedule=cyclic"
    ]


def test_split_learning_brings_its_schedule_and_vertical_algorithms_ask_everybody():
    assert compose("algorithm=split").schedule.cohort == 1
    assert problems_of("algorithm=split", "schedule=synchronous", "algorithm.cut=0") == [
        "algorithm.cut=0 is not at least 1. Fix: algorithm.cut=1",
        "algorithm=split takes the model to one site a round. Fix: schedule=cyclic"]
    words = ("data=parties", "experiment=none", "schedule.cohort=2")
    (found,) = problems_of("algorithm=vertical_logistic", *words)
    assert "Fix: schedule.cohort=1.0" in found
    check(compose("algorithm=vertical_towers", "data=parties", "experiment=none"))


@pytest.mark.parametrize(("algorithm", "setting", "fix"), [
    ("pretrain", "algorithm.rounds=20", "algorithm.rounds=10 or rounds=40"),
    ("hierfavg", "algorithm.period=21", "algorithm.period=20 or rounds=21")])
def test_the_rounds_that_make_the_model_must_come(algorithm, setting, fix):
    (found,) = problems_of(f"algorithm={algorithm}", setting)
    assert found.startswith(setting) and found.endswith(f"Fix: {fix}")
    check(compose(f"algorithm={algorithm}"))


def test_settings_of_algorithms_against_drift_are_checked_with_their_fix():
    assert "algorithm.control=batch" in problems_of("algorithm=mime", "algorithm.control=site")[0]
    assert "algorithm.eps=0.001" in problems_of("algorithm=fedexp", "algorithm.eps=0")[0]
    assert "algorithm.alpha=0.1" in problems_of("algorithm=feddyn", "algorithm.alpha=-1")[0]
    assert "algorithm.momentum=0.9" in problems_of("algorithm=mimelite", "algorithm.momentum=1.0")[0]


def test_pooled_is_refused_on_a_cluster():
    found = problems_of("algorithm=pooled", "runtime=ray_cluster", "runtime.address=auto")
    assert len(found) == 1 and "real federation" in found[0]


def test_runs_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in problems_of(f"runs_dir={tmp_path}/file/runs")[0]


def test_data_that_needs_scikit_learn_names_the_install_command(monkeypatch):
    monkeypatch.setattr(config.config_check.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'fedray[report]'" in problems_of("experiment=digits")[0]


def test_yaml_of_plain_values_is_read_back_as_equal_also_where_a_text_looks_like_a_number():
    texts = ["true", "Yes", "1e-3", "1_000", "null", "", "0x1F", "1:30", "inf", ".nan", "- b", "é", "a\nb"]
    tree = {"texts": texts, "none": None, "float": 1e-5, "int": 3, "bool": True, "again": texts}
    text = config.plain_yaml(tree)
    assert OmegaConf.to_container(OmegaConf.create(text)) == tree
    assert text == OmegaConf.to_yaml(OmegaConf.create(tree))


def test_run_directory_is_time_name_and_hash_of_the_config():
    first, same, other = compose_run([]), compose_run(["name=icu_mortality"]), compose_run(["rounds=3"])
    assert first.run_dir.parts[0] == "runs"
    assert first.run_dir.name.split("-")[2:] == ["icu_mortality", config.config_hash(first.config)[:6]]
    assert first.run_dir.name[-6:] == same.run_dir.name[-6:] != other.run_dir.name[-6:]


def test_seed_reaches_what_derives_from_it():
    assert compose("experiment=eicu_demo", "seed=5").data.split_seed == 5


def test_compose_leaves_an_open_hydra_as_it_was(tmp_path):
    from hydra import compose as outer_compose
    from hydra import initialize_config_dir
    (tmp_path / "outer.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        compose("rounds=3")
        assert outer_compose("outer").a == 1


def test_own_folder_adds_a_preset_and_a_model_without_a_schema(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "net.yaml").write_text("_target_: mypackage.Net\nwidth: 3\n")
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [{override /model: net}]\nname: mine\nallow: [mypackage]\n")
    composed = compose("experiment=mine", "model.width=4", config_dir=str(tmp_path), allow=["other"])
    check(composed)
    assert (composed.name, composed.model.width, list(composed.allow)) == ("mine", 4, ["mypackage", "other"])


def test_config_is_plain_for_who_reads_it():
    assert OmegaConf.is_dict(compose())
    assert config.to_plain(compose())["schedule"]["sampling"] == "uniform"


@pytest.mark.parametrize(("key", "overrides", "value", "origin"), [
    ("rounds", [], 20, "icu_mortality.yaml:"), ("rounds", ["rounds=3"], 3, "command line: rounds=3"),
    ("seed", [], 0, "config.yaml:"), ("algorithm.mu", ["algorithm=fedprox"], 0.01, "fedprox.yaml:"),
    ("checkpoint.keep", [], 2, "default of Config in config_schema.py:"),
    ("schedule.retries", [], 2, "default of Synchronous in config_schema.py:")])
def test_explain_names_value_and_origin(key, overrides, value, origin):
    told = explain(key, overrides)
    assert told.value == value and origin in told.set_by


def test_explained_line_holds_the_key():
    place, line = explain("rounds").set_by.rsplit(":", 1)
    assert Path(place).read_text().splitlines()[int(line) - 1].startswith("rounds:")


def test_explain_suggests_a_key():
    with pytest.raises(ConfigError, match="--explain schedule.quorum"):
        explain("schedule.qorum")


SHIPPED = [(group, option) for group in SCHEMAS for option, schema in SCHEMAS[group].items()
           if "_target_" in {item.name for item in fields(schema)}]


@pytest.mark.parametrize(("group", "option"), SHIPPED)
def test_settings_are_parameters_of_the_factory_with_its_defaults(group, option):
    schema = SCHEMAS[group][option]
    factory = locate("target", next(item.default for item in fields(schema) if item.name == "_target_"))
    known = inspect.signature(factory).parameters
    beside = {*OF_THE_RUN, "_target_", "airlock"}
    told = {item.name: item.default for item in fields(schema) if item.name not in beside}
    assert set(told) <= set(known)
    has_default = {name for name in told if known[name].default is not inspect.Parameter.empty}
    settled = {name: value for name, value in told.items() if name in has_default - OWN_DEFAULTS
               and isinstance(value, (int, float, str)) and "$" not in str(value) and value != "???"}
    assert settled == {name: known[name].default for name in settled}


def test_a_buffer_must_be_fillable_and_a_trace_needs_the_simulated_clock():
    assert problems_of("schedule=buffered", "schedule.size=300") == [
        "schedule.size=300 is more than the 208 sites of the data, each of which is in a buffer once. "
        "Fix: schedule.size=208"]
    assert problems_of("schedule=buffered", "schedule.trace=day.csv") == [
        "schedule.trace is replayed on the simulated clock. Fix: runtime=in_process"]
    assert problems_of("schedule=buffered", "schedule.concurrency=0") != []
