"""Bad input through the command: exit code 2, what, where, the fix, nothing left.

One test per kind; none of them gets as far as Ray. Two are asked of a process of its own as well, one before
torch is loaded and one after: each start costs seconds.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedray import cli

REPOSITORY = Path(__file__).parents[2]
RUN = ("run", "runtime=in_process")
Refused = Callable[..., str]
CONTRACT = """\
name: toy
version: 1
outcome: died
columns:
  age: {unit: years, low: 16, high: 90}
  creatinine: {unit: mg/dL, low: 0.2, high: 12}
  died: {kind: flag}
"""


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path.relative_to(folder)), path.stat().st_size if path.is_file() else -1)
                  for path in folder.rglob("*"))


def check(code: int, message: str) -> None:
    """Assert what every refusal must keep to."""
    assert code == 2, message
    assert 2 <= len(message.splitlines()) <= 25
    assert "Traceback" not in message


def refused_by_command(folder: Path, *words: str) -> str:
    """Run `fedray run` in a process of its own and return the message of its refusal."""
    before = listing(folder)
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run([sys.executable, "-m", "fedray", *RUN, *words], cwd=folder,
                          env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
                          check=False)
    check(done.returncode, done.stdout + done.stderr)
    assert listing(folder) == before
    return done.stderr


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Return what runs `fedray run` in the test's folder and returns the message of its refusal."""
    monkeypatch.chdir(tmp_path)

    def ask(*words: str) -> str:
        before = listing(tmp_path)
        code = cli.main([*RUN, *words])
        out, err = capfd.readouterr()
        check(code, out + err)
        assert listing(tmp_path) == before
        return err

    return ask


def test_misspelt_override_is_refused(refused):
    message = refused("schedule.qorum=0.5")
    assert "schedule.qorum" in message and "fix: schedule.quorum=0.5" in message


def test_wrong_type_is_refused(refused):
    message = refused("rounds=many")
    assert "'many'" in message and "Integer" in message and "fix: rounds=20" in message


@pytest.mark.parametrize("words", [
    ("algorithm=fedlora", "algorithm.layers=[nope]"), ("algorithm=fedper", "algorithm.personal=[nope]"),
    ("algorithm=fine_tuning", "algorithm.trained=[nope]")])
def test_part_that_the_model_has_not_is_refused_before_the_run_is_begun(words, refused):
    message = refused(*words)
    assert "['nope']" in message and "weight" in message and "fix: see" in message


def test_another_number_of_sites_is_refused(refused):
    message = refused("algorithm=scaffold", "+algorithm.num_sites=500")
    assert "num_sites=500" in message and "fix: ~algorithm.num_sites" in message


def test_quorum_above_one_is_refused(refused):
    message = refused("schedule.quorum=1.5")
    assert "schedule.quorum=1.5" in message and "fix: schedule.quorum=0.8" in message


def test_cohort_above_the_number_of_sites_is_refused(refused):
    message = refused("schedule.cohort=500")
    assert "schedule.cohort=500" in message and "208" in message and "fix: schedule.cohort=208" in message


def test_unknown_preset_is_refused(refused):
    message = refused("experiment=icu_mortalty")
    assert "icu_mortalty" in message and "fix: experiment=icu_mortality" in message


def test_unwritable_run_directory_is_refused(tmp_path, refused):
    (tmp_path / "file").write_text("")
    message = refused("runs_dir=file/runs")
    assert "runs_dir=file/runs" in message and "fix: runs_dir=" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_run_directory_without_permission_is_refused(tmp_path, refused):
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "cannot be written to" in refused("runs_dir=locked")


def test_target_outside_fedray_is_refused(refused):
    message = refused("model._target_=builtins.eval")
    assert "model._target_=builtins.eval" in message and "fix:" in message


def hospitals(folder: Path, **change: str | None) -> Path:
    """Write three small hospitals and their contract; `change` replaces a file's text, None leaves it out."""
    rows = "".join(f"{30 + 2 * row},{0.8 + row / 20},{int(row % 3 == 0)}\n" for row in range(20))
    files = {f"{site}.csv": f"age,creatinine,died\n{rows}" for site in ("east", "north", "west")}
    files |= {f"{site}.csv": text for site, text in change.items() if text is not None}
    (folder / "sites").mkdir()
    (folder / "toy.yaml").write_text(CONTRACT)
    for name, text in files.items():
        (folder / "sites" / name).write_text(text)
    return folder / "sites"


def table(header: str = "age,creatinine,died", row: str = "{age},1.1,{died}", rows: int = 20) -> str:
    lines = [row.format(age=30 + 2 * index, died=int(index % 3 == 0)) for index in range(rows)]
    return "\n".join([header, *lines]) + "\n"


CSV = ("experiment=none", "data=csv", "data.path=sites", "data.contract=toy.yaml", "model=logistic")


def test_missing_column_is_refused(tmp_path, refused):
    hospitals(tmp_path, north=table("age,kreatinin,died"))
    message = refused(*CSV)
    assert "north" in message and "creatinine" in message and "fix:" in message


def test_column_in_another_unit_is_refused(tmp_path, refused):
    hospitals(tmp_path, north=table(row="{age},95.0,{died}"))  # umol/L, where mg/dL is agreed
    message = refused(*CSV)
    assert "north" in message and "creatinine" in message and "mg/dL" in message and "fix:" in message


def test_site_without_rows_is_refused(tmp_path, refused):
    hospitals(tmp_path, north=table(rows=0))
    message = refused(*CSV)
    assert "north" in message and "data.allow_empty=true" in message


def test_one_class_only_is_refused(tmp_path, refused):
    one = table(row="{age},1.1,0")
    hospitals(tmp_path, east=one, north=one, west=one)
    message = refused(*CSV)
    assert "died" in message and "fix:" in message


def test_missing_labels_are_refused(tmp_path, refused):
    hospitals(tmp_path, north=table(row="{age},1.1,"))
    message = refused(*CSV)
    assert "north" in message and "died" in message and "fix:" in message


def test_duplicate_site_ids_are_refused(tmp_path, refused):
    hospitals(tmp_path)
    (tmp_path / "sites" / "north.tsv").write_text(table().replace(",", "\t"))
    message = refused(*CSV)
    assert "north" in message and "duplicate" in message and "fix:" in message


def test_unreadable_file_is_refused(tmp_path, refused):
    sites = hospitals(tmp_path)
    (sites / "north.csv").unlink()
    (sites / "north.parquet").write_bytes(b"no table")
    message = refused(*CSV)
    assert "north" in message and "cannot be read" in message and "fix:" in message


def test_data_set_that_is_not_there_names_what_fetches_it(refused, monkeypatch):
    monkeypatch.delenv("FEDRAY_DATA", raising=False)
    message = refused("experiment=eicu_demo")
    assert "fedray data get" in message and "data_dir=" in message


@pytest.mark.slow
def test_process_of_the_command_refuses_a_setting_and_a_file_alike(tmp_path, refused):
    hospitals(tmp_path, north=table("age,kreatinin,died"))
    for words in (("schedule.qorum=0.5",), CSV):
        assert refused_by_command(tmp_path, *words) == refused(*words)
