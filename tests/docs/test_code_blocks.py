"""What README.md and docs/ show runs as it stands: Python with its output, commands, line counts.

The ```python blocks of one page run in order in one process, in an empty folder with one small run under
`runs/latest`. A ```text block right after such a block is its output (`plan` digests may differ). Blocks
tagged `file=NAME` are written there first. Commands are parsed, composed and checked, not run.
"""

import argparse
import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedray import cli, config
from fedray.sweep import commands as sweep
from fedray.sweep import planning
from fedray.sweep.trials import Trial

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<tag>[^\n`]*)\n(?P<text>.*?)^```$", re.M | re.S)
INLINE = re.compile(
    r"`(fedray (?:run|sweep|resume|status|logs|data|diff|contribution|privacy|cluster) [^`]*)`"
)
PLAIN = {"contribution": "fedray.contribution.commands", "data": "fedray.data.commands",
         "report": "fedray.report.commands", "diff": "fedray.report.commands",
         "clean": "fedray.report.commands", "doctor": "fedray.doctor",
         "cluster": "fedray.cluster.commands",
         "status": "fedray.observe.commands", "logs": "fedray.observe.commands",
         "privacy": "fedray.accounting.commands"}
FOLDERS = ("hospitals", "data/eicu-demo", "data/heart-disease")  # what the pages' own earlier steps make
PRINT_END = "print('<end of block>')"
MAX_TRIALS = 6  # of a grid of 2 x 5 values as many show each
MAX_LINES = 30  # of a newcomer's algorithm, exclusive


@dataclass(frozen=True)
class Block:
    language: str
    file: str | None
    text: str
    line: int  # of its first line, counted from 0


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    text, found = page.read_text("utf-8"), []
    for fence in FENCE.finditer(text):
        language, *options = fence["tag"].split() or [""]
        file = next((option.removeprefix("file=") for option in options if option.startswith("file=")), None)
        found.append(Block(language, file, fence["text"], text.count("\n", 0, fence.start("text"))))
    return found


def script(page: Path) -> str:
    """Return the Python blocks of a page, each at its own line, so that an error names the page's line."""
    lines: list[str] = []
    for block in blocks(page):
        if block.language == "python" and block.file is None:
            lines += [""] * (block.line - len(lines)) + block.text.splitlines() + [PRINT_END]
    return "\n".join(lines)


def write_files(page: Path, folder: Path) -> None:
    """Write the blocks of a page that are files."""
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text, "utf-8")


def expected(page: Path) -> list[tuple[int, str]]:
    """Return (number of the Python block, text) for each text block that follows a Python block."""
    found, number, before = [], -1, None
    for block in blocks(page):
        is_code = block.language == "python" and block.file is None
        number += is_code
        if block.language == "text" and before is not None and before.language == "python":
            found.append((number, block.text))
        before = block
    return found


def comparable(text: str) -> str:
    """Return a text without what changes with fedray's own source."""
    return re.sub(r"plan [0-9a-f]{8}", "plan ########", re.sub(r"\bplan\.py:\d+", "plan.py:#", text)).strip()


def commands() -> list[str]:
    """Return every command of the pages, in ```bash blocks and inline."""
    found: dict[str, None] = {}
    for page in PAGES:
        for block in blocks(page):
            if block.language in ("bash", "console"):
                found |= dict.fromkeys(line.removeprefix("$ ") for line in block.text.splitlines())
        found |= dict.fromkeys(INLINE.findall(page.read_text("utf-8")))
    return [line for line in found if re.match(r"(fedray|make) ", line)]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds one finished run."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["run", "experiment=debug", "report=none"]) == cli.DONE
    return folder


@pytest.fixture(scope="module")
def fork_server() -> Iterator[subprocess.Popen[str]]:
    """Start what runs the pages' programs: see fork_server.py."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    server = [sys.executable, "-m", "tests.docs.fork_server"]
    with subprocess.Popen(server, cwd=ROOT, env=environment, text=True, stdin=-1, stdout=-1) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if script(page)], ids=lambda page: page.name)
def test_python_blocks_run_and_print_what_the_page_shows(
    page: Path, small_run: Path, fork_server: subprocess.Popen[str], tmp_path: Path
) -> None:
    (tmp_path / "runs").symlink_to(small_run / "runs")
    write_files(page, tmp_path)
    program, output = tmp_path / f"{page.stem}.py", tmp_path / "printed"
    program.write_text(script(page), "utf-8")
    assert fork_server.stdin is not None and fork_server.stdout is not None
    asked = {"folder": str(tmp_path), "program": program.name, "output": str(output)}
    fork_server.stdin.write(json.dumps(asked) + "\n")
    fork_server.stdin.flush()
    code = int(fork_server.stdout.readline())
    assert code == 0, Path(f"{output}.err").read_text("utf-8")
    printed = [comparable(part) for part in output.read_text("utf-8").split("<end of block>")]
    for number, text in expected(page):
        assert comparable(text) in printed[number]


def test_every_page_has_python_that_runs() -> None:
    table = "pass-matrix.md"  # which its own test compares
    commands = {"cluster-security.md", "cluster-testbed.md", "observing.md", "planner.md"}
    assert {page.name for page in PAGES if not script(page)} == {table, *commands}


@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_commands_compose(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        write_files(page, tmp_path)
    for folder in FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    program, command, *words = shlex.split(line, comments=True)
    if program == "make":
        assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text("utf-8"), re.M)
    elif command == "run":
        check_run(words)
    elif command == "sweep":
        flags, overrides = sweep.parse(words)
        planning.check(showing_each_value(planning.trials_of(flags, overrides)), flags)
    elif command == "resume":
        assert words and all(re.fullmatch(r"\w[\w.]*=.+", word) for word in words[1:])
    else:
        parser = argparse.ArgumentParser()
        importlib.import_module(PLAIN[command]).add_parser(parser.add_subparsers(required=True))
        parser.parse_args([command, *words])


def showing_each_value(trials: list[Trial]) -> list[Trial]:
    """Return trials that show every override of all, and the first ones of random draws.

    To compose one takes a fifth of a second.
    """
    seen: set[str] = set()
    chosen = []
    for trial in trials:
        if not seen.issuperset(trial.overrides):
            seen.update(trial.overrides)
            chosen.append(trial)
    return chosen[:MAX_TRIALS]


def check_run(words: list[str]) -> None:
    """Compose and check what `fedray run` is given; flags that only print are answered."""
    flags, rest = cli._flags(words, "--explain", "-m|--multirun", "-h|--help")
    if flags.help or any(word.startswith("-") for word in rest):
        assert cli.main(["run", *words]) == cli.DONE
    elif flags.explain is not None:
        assert flags.explain in str(config.explain(flags.explain, rest, flags.config_dir))
    else:
        config.check(config.compose_run(rest, flags.config_dir, flags.allow).config)


def test_a_newcomers_algorithm_has_under_thirty_lines() -> None:
    (block,) = [one for one in blocks(ROOT / "docs" / "add-algorithm.md") if one.file == "fedexp.py"]
    settings = str(ROOT / "pyproject.toml")
    formatted = subprocess.run([sys.executable, "-m", "ruff", "format", "--config", settings, "-"],
                               input=block.text, capture_output=True, text=True, check=True).stdout
    assert formatted == block.text
    module = ast.parse(block.text)
    first = ast.get_docstring(module) is not None
    left_out = [node for index, node in enumerate(module.body)
                if isinstance(node, ast.Import | ast.ImportFrom) or (first and index == 0)]
    gone = {line for node in left_out for line in range(node.lineno, node.end_lineno + 1)}
    kept = [text for number, text in enumerate(block.text.splitlines(), 1) if number not in gone]
    assert len("\n".join(kept).strip().splitlines()) < MAX_LINES  # blank lines between functions included


def test_the_picture_of_the_readme_is_there_and_small() -> None:
    (source,) = re.findall(r'<img src="([^"]+)"', (ROOT / "README.md").read_text("utf-8"))
    picture = (ROOT / source).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 300_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
