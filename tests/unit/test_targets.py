"""Which code a `_target_` may name: fedray's own and that of allowed packages, by the object it leads to."""

import functools
import sys
from pathlib import Path

import pytest

from fedray import config_targets
from fedray.config import check, compose
from fedray.errors import ConfigError


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "ownpack.py").write_text(
        "import os\nfrom functools import partial\n\n\n"
        "class Net:\n    def __init__(self, num_features, width=3):\n"
        "        self.shape = (num_features, width)\n\n"
        "    @classmethod\n    def small(cls, num_features):\n        return cls(num_features, 1)\n\n\n"
        "half = partial(Net, 2)\n\n\n"
        "def factory():\n    def inner():\n        return 1\n    return inner\n\n\n"
        "inner = factory()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "ownpack"
    sys.modules.pop("ownpack", None)


@pytest.mark.parametrize("target", ["functools.partial", "builtins.eval", "fedrayevil.x", "os.system",
                                    "torch.load", "fedray", "", "fedray.errors:ConfigError", None, 3])
def test_target_outside_the_allowed_packages_is_refused(target):
    with pytest.raises(ConfigError, match="_target_"):
        config_targets.locate("model._target_", target)


@pytest.mark.parametrize("target", ["fedray.cli.os.system", "fedray.cli.importlib.import_module",
                                    "fedray.config_targets.functools.partial", "fedray.errors.dataclass",
                                    "fedray.cli.HELP", "fedray.errors.ConfigError.__init__.__globals__"])
def test_alias_inside_fedray_that_leads_elsewhere_is_refused(target):
    with pytest.raises(ConfigError):
        config_targets.locate("model._target_", target)


def test_nothing_outside_the_allowed_packages_is_imported(tmp_path, monkeypatch):
    (tmp_path / "fedrayevil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="--allow fedrayevil"):
        config_targets.locate("model._target_", "fedrayevil.x")
    assert "fedrayevil" not in sys.modules


@pytest.mark.parametrize("spec", [
    {"_target_": "fedray.errors.ConfigError", "_args_": [{"_target_": "builtins.eval", "_args_": ["1"]}]},
    {"_target_": "fedray.errors.ConfigError", "_args_": [[{"deep": {"_target_": "functools.partial"}}]]},
    {"_target_": "fedray.errors.ConfigError", "problems": {"_target_": "os.getcwd"}},
])
def test_nested_target_is_refused_by_call_and_found_by_the_search(spec):
    with pytest.raises(ConfigError, match="neither part of fedray"):
        config_targets.call("model", spec)
    assert len(list(config_targets.find_targets({"model": spec}))) == 2


def test_check_names_every_target_that_is_not_allowed():
    config = compose("experiment=none", "model._target_=os.system", "local._target_=builtins.eval")
    with pytest.raises(ConfigError) as caught:
        check(config)
    assert [text.split("=")[0] for text in caught.value.problems] == ["model._target_", "local._target_"]


@pytest.mark.parametrize("prefix", ["os", "builtins", "os.path", "my-package", ""])
def test_python_itself_cannot_be_allowed(prefix):
    assert config_targets.check_prefix(prefix) is not None


def test_allowed_package_is_found_and_gets_what_is_known_at_run_time(own_package):
    net = config_targets.call("model", {"_target_": "ownpack.Net", "hidden": [32]}, (own_package,),
                              spare={"hidden"}, num_features=7, num_sites=4)
    assert net.shape == (7, 3)


def test_class_method_of_an_allowed_package_is_accepted(own_package):
    assert config_targets.locate("model._target_", "ownpack.Net.small", (own_package,))(2).shape == (2, 1)


@pytest.mark.parametrize("target", ["ownpack.os.system", "ownpack.half", "ownpack.inner", "ownpack.missing",
                                    "ownpack.Net.missing"])
def test_object_that_an_allowed_package_does_not_define_is_refused(own_package, target):
    with pytest.raises(ConfigError):
        config_targets.locate("model._target_", target, (own_package,))


def test_setting_that_the_factory_does_not_take_is_named(own_package):
    with pytest.raises(ConfigError, match="takes no 'depth', only num_features, width"):
        config_targets.call("model", {"_target_": "ownpack.Net", "depth": 2}, (own_package,), num_features=1)


def test_partial_is_made_without_naming_functools(own_package):
    spec = {"_target_": "ownpack.Net", "_partial_": True, "width": 5}
    made = config_targets.call("model", spec, (own_package,))
    assert isinstance(made, functools.partial) and made(2).shape == (2, 5)
