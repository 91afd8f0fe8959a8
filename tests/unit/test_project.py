"""What the project promises around its code: pins, the content of the wheel, no addresses, a light start."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedray

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
HEAVY = {"torch", "ray", "pandas", "numpy"}
IGNORED = {"build", "data", "dist", "runs", "wheels"}  # at the top; hidden folders but .ci too
TEXT = {"", ".cff", ".css", ".html", ".j2", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
HOSTS = ("pypi" + ".org", "python" + "hosted.org", "download.py" + "torch.org", "conda" + ".anaconda.org")
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:work|opt|root|Users|home|mnt)/\w")


def ours() -> list[Path]:
    """Return the text files of the project: what is not ignored and not made by a tool or a run."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in IGNORED
               and (path.name[0] != "." or path.name == ".ci") and path.suffix != ".egg-info"]
    files = [*ROOT.iterdir(), *(file for folder in folders for file in folder.rglob("*"))]
    return [file for file in files if file.is_file() and file.suffix in TEXT]


def packages_under(folder: Path, name: str) -> set[str]:
    """Return the dotted names of a folder and those below it that hold Python files."""
    found = {path.parent for path in folder.rglob("*.py") if "__pycache__" not in path.parts}
    return {".".join((name, *path.relative_to(folder).parts)) for path in found}


def test_constraints_are_plain_pins() -> None:
    assert [line for line in CONSTRAINTS if not re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][\w.]*", line)] == []


def test_constraints_pin_every_dependency_once() -> None:
    pinned = [line.split("==")[0] for line in CONSTRAINTS]
    project = PYPROJECT["project"]
    extras = [need for extra in project["optional-dependencies"].values() for need in extra]
    named = [*project["dependencies"], *extras]
    direct = {re.match(r"[\w-]+", need).group().lower() for need in named} - {"fedray"}
    assert direct <= set(pinned)
    assert len(pinned) == len(set(pinned))


def test_wheel_lists_every_package_folder() -> None:
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert listed == packages_under(ROOT / "fedray", "fedray") | {"fedray.conf"}


def test_wheel_holds_every_configuration_file_but_the_users_own() -> None:
    settings = PYPROJECT["tool"]["setuptools"]
    (pattern,) = settings["package-data"]["fedray.conf"]
    assert set((ROOT / "conf").glob(pattern)) == set((ROOT / "conf").rglob("*.yaml"))
    assert settings["exclude-package-data"]["fedray.conf"] == ["user/*"]
    assert settings["package-dir"]["fedray.conf"] == "conf"


def test_every_kind_of_data_file_of_the_package_ships() -> None:
    suffixes = {path.suffix for path in (ROOT / "fedray").rglob("*") if path.is_file()} - {".py", ".pyc"}
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["*"]
    assert suffixes - {Path(pattern).suffix for pattern in patterns} <= {""}


def test_version_is_the_same_everywhere() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited.group(1) == fedray.__version__
    assert f"## [{fedray.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    found = []
    for file in ours():
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line) or any(host in line for host in HOSTS):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_makefile_explains_every_target() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert phony is not None
    assert set(re.findall(r"^([a-z-]+):.* ## ", text, re.MULTILINE)) == set(phony.group(1).split())


def test_licences_of_the_direct_dependencies_are_listed() -> None:
    text = (ROOT / "THIRD_PARTY_LICENSES.md").read_text("utf-8")
    listed = set(re.findall(r"^\| ([a-z0-9-]+) \| \d", text, re.MULTILINE))
    direct = {re.match(r"[\w-]+", need).group().lower() for need in PYPROJECT["project"]["dependencies"]}
    assert direct <= listed


@pytest.mark.parametrize("words", [["--help"], ["run", "--cfg", "job"], ["run", "--help"]], ids=" ".join)
def test_command_line_answers_without_torch_and_ray(words: list[str]) -> None:
    program = (f"import json, sys\nfrom fedray.cli import main\ncode = main({words!r})\n"
               "print()\nprint(json.dumps([code, *sys.modules]))")
    command = [sys.executable, "-c", program]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    code, *modules = json.loads(asked.stdout.splitlines()[-1])
    assert code in (0, None)
    assert HEAVY.isdisjoint(modules)
