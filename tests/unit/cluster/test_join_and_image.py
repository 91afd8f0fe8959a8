"""What machines are set up with: image, unit, cloud-init and scripts are sound where tools can tell."""

import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from fedray.cluster import node_data
from fedray.runtime.versions import MATCH_LEVEL

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "cluster"
SCRIPTS = [path for path in sorted(CLUSTER.rglob("*.sh")) if path.read_text("utf-8").startswith("#!")]
DOCKERFILE = (CLUSTER / "Dockerfile").read_text("utf-8")
CLOUD_INIT = yaml.safe_load((CLUSTER / "join" / "cloud-init.yaml").read_text("utf-8"))
README = (CLUSTER / "README.md").read_text("utf-8")
UNIT = (CLUSTER / "join" / "fedray-node.service").read_text("utf-8")


def instructions():
    """Return the instructions of the Dockerfile in order, long ones on one line."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]


def arguments(word):
    return [rest for found, rest in instructions() if found == word]


def run(*command, **more):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **more)


def needs(tool):
    return pytest.mark.skipif(not shutil.which(tool), reason=f"{tool} is not installed")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_whole_and_stops_at_the_first_error(script):
    assert run("bash", "-n", script).returncode == 0
    assert "set -euo pipefail" in script.read_text("utf-8") and os.access(script, os.X_OK)


@needs("shellcheck")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    assert run("shellcheck", script).stdout == ""


def test_image_stands_on_one_version_of_its_base():
    (base,) = arguments("ARG")[:1]
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-[a-z]+", base)
    assert arguments("FROM") == ["${BASE}"]


def test_image_runs_as_nobody_special():
    words = [word for word, _ in instructions()]
    assert arguments("USER") == ["1000:1000"]
    assert words.index("USER") > max(place for place, word in enumerate(words) if word in ("RUN", "COPY"))


def test_image_takes_nothing_from_elsewhere_but_pinned_packages():
    assert arguments("ADD") == []
    assert re.findall(r"\b(?:curl|wget|https?://)", DOCKERFILE) == []
    installs = [line for line in arguments("RUN") if "pip install" in line]
    assert [line for line in installs if "-c constraints.txt" not in line and "--no-deps" not in line] == []


def test_image_copies_dependencies_before_code():
    copies = arguments("COPY")
    pins, code = (next(place for place, line in enumerate(copies) if what in line)
                  for what in ("constraints.txt", "fedray ./fedray"))  # fmt: skip
    assert pins < code


def test_image_copies_what_dockerignore_lets_through_and_what_exists():
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    sources = [source for line in arguments("COPY") for source in line.split()[:-1]]
    copied = {source for source in sources if not source.startswith("--")}
    assert copied == let_through
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_requirements_of_the_image_are_those_of_the_project():
    spec = importlib.util.spec_from_file_location("requirements", CLUSTER / "requirements.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    needs_all = module.requirements(text, ["aws"])
    assert needs_all == [*tomllib.loads(text)["project"]["dependencies"], "boto3"]
    with pytest.raises(KeyError):
        module.requirements(text, ["cloud"])


@needs("systemd-analyze")
def test_systemd_takes_the_unit(tmp_path):
    program = tmp_path / "fedray-node"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "fedray-node.service").write_text(UNIT.replace("/usr/local/bin/fedray-node", str(program)))
    told = run("systemd-analyze", "verify", tmp_path / "fedray-node.service")
    assert (told.returncode, told.stdout + told.stderr) == (0, "")


def test_unit_comes_back_always_and_gives_work_time_to_end():
    settings = [line.partition("=")[::2] for line in UNIT.splitlines() if "=" in line and line[0] != "#"]
    said = dict(settings)
    assert said["Restart"] == "always" and said["StartLimitIntervalSec"] == "0"
    assert said["ExecStart"].endswith("fedray-node run worker") and said["User"] == "fedray"
    assert said["KillMode"] == "mixed" and int(said["TimeoutStopSec"]) > 100  # FEDRAY_DRAIN_S and some


def test_settings_of_a_node_are_read_by_its_script():
    node = (CLUSTER / "node.sh").read_text("utf-8")
    template = (CLUSTER / "join" / "node.env").read_text("utf-8")
    names = re.findall(r"^(?:# )?([A-Z_]+)=", template, re.MULTILINE)
    elsewhere = {MATCH_LEVEL, node_data.VARIABLE}  # read by ray and the door, by openers of sites
    assert [name for name in names if name not in node and name not in elsewhere] == []


def test_check_of_a_node_that_joined_has_the_variables_of_its_unit():
    (line,) = re.findall(r"^sudo -u fedray env .*?'$", README, re.MULTILINE | re.DOTALL)
    wanted = [word for line in re.findall(r"^Environment=(.*)$", UNIT, re.MULTILINE) for word in line.split()]
    assert len(wanted) == 4 and [word for word in wanted if word not in line] == []
    assert "/etc/fedray/node.env" in line and "fedray cluster check --address" in line


@needs("cloud-init")
def test_cloud_init_takes_the_user_data():
    told = run("cloud-init", "schema", "--config-file", CLUSTER / "join" / "cloud-init.yaml")
    assert told.returncode == 0, told.stderr


def test_user_data_holds_no_secret_and_a_sound_script(tmp_path):
    assert (CLUSTER / "join" / "cloud-init.yaml").read_text("utf-8").startswith("#cloud-config\n")
    files = {one["path"]: one["content"] for one in CLOUD_INIT["write_files"]}
    assert "BEGIN" not in str(files)
    (script,) = [content for path, content in files.items() if path in str(CLOUD_INIT["runcmd"])]
    (tmp_path / "join").write_text(script)
    assert run("bash", "-n", tmp_path / "join").returncode == 0
    assert "umask 077" in script


def test_install_refuses_a_folder_without_secrets(tmp_path):
    (tmp_path / "fedray.whl").touch()
    told = run(CLUSTER / "join" / "install.sh", tmp_path / "fedray.whl", tmp_path)
    assert told.returncode == 2 and "Fix:" in told.stderr
    assert ("token is missing" in told.stderr) == (os.geteuid() == 0)  # asked for root first


FEDRAY = """#!/bin/sh
echo "$@" >> "$STAND_IN/asked"
case "$3" in
  init) mkdir -p "$STAND_IN/home"; echo key > "$STAND_IN/home/ca.key"; echo crt > "$STAND_IN/home/ca.crt" ;;
  token) echo secret > "$STAND_IN/home/token" ;;
  node) mkdir -p "$STAND_IN/home/nodes/$4"
        for file in ca.crt node.crt node.key; do echo "$file" > "$STAND_IN/home/nodes/$4/$file"; done ;;
esac
"""


@pytest.fixture
def handout(tmp_path):
    """Return a function that calls handout.sh with a stand-in for `fedray cluster certs`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "fedray").write_text(FEDRAY)
    (tmp_path / "bin" / "fedray").chmod(0o755)
    there = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "STAND_IN": str(tmp_path),
                          "FOLDER": str(tmp_path / "home")}  # fmt: skip

    def call(*words):
        return run(CLUSTER / "tls" / "handout.sh", *words, env=there)

    return call


def test_a_node_is_handed_token_and_certificates_that_it_alone_may_read(handout, tmp_path):
    handout("init")
    folder = Path(handout("node", "h001", "10.20.0.5", "192.0.2.9").stdout.strip())
    assert {path.name: oct(path.stat().st_mode)[-3:] for path in folder.iterdir()} == {
        "token": "600", "ca.crt": "600", "node.crt": "600", "node.key": "600",
    }  # fmt: skip
    assert "certs node h001 --ip 10.20.0.5 --ip 192.0.2.9 --folder" in (tmp_path / "asked").read_text()
    assert not (folder / "ca.key").exists()


def test_a_pool_certificate_names_every_address_that_a_machine_may_have(handout, tmp_path):
    handout("init")
    assert handout("pool", "pool", "10.0.8.0/29").returncode == 0
    asked = (tmp_path / "asked").read_text().splitlines()[-1]
    assert re.findall(r"--ip (\S+)", asked) == [f"10.0.8.{last}" for last in range(1, 7)]


@pytest.mark.parametrize(("words", "what"), [
    (["pool", "pool", "10.0.0.0/16"], "has 65536 addresses. Fix: a subnet of /24"),
    (["pool", "pool", "office"], "Fix: a subnet such as 10.0.8.0/24"),
    (["node", "h001"], "a name and an address are needed"), (["all"], "init, node or pool"),
    (["node", "-h", "10.0.0.2"], "'-h' is no name of a node. Fix: "),
])  # fmt: skip
def test_words_that_cannot_be_meant_are_refused(handout, words, what):
    handout("init")
    told = handout(*words)
    assert told.returncode != 0 and what in told.stderr


def test_init_that_was_stopped_goes_on_and_makes_what_is_missing(handout, tmp_path):
    handout("init")
    (tmp_path / "home" / "token").unlink()
    assert handout("init").returncode == handout("init").returncode == 0
    asked = [line.split()[2] for line in (tmp_path / "asked").read_text().splitlines()]
    assert asked == ["init", "token", "token"]


def test_node_is_given_nothing_where_there_is_no_token(handout, tmp_path):
    told = handout("node", "h001", "10.0.0.2")
    assert told.returncode == 2 and "there is no token in" in told.stderr
    assert "Fix: handout.sh init" in told.stderr
    assert not (tmp_path / "asked").exists()


def test_environment_that_is_not_activated_is_named(handout, tmp_path):
    (tmp_path / "bin" / "fedray").unlink()
    system = os.environ | {"PATH": "/usr/bin:/bin", "FOLDER": str(tmp_path / "home")}
    told = run(CLUSTER / "tls" / "handout.sh", "init", env=system)
    assert told.returncode == 2 and "Fix: activate the environment first: . .venv/bin/activate" in told.stderr
