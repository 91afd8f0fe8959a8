"""bootstrap.py: what it hands to pip and uv, when it sets up again, and that a proxy is asked.

Commands are recorded instead of run, but for the proxy: there the real pip talks to a listener on loopback.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder with the files that bootstrap.py reads."""
    for name in ("bootstrap.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def bootstrap(tree: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return bootstrap as a module of that folder; its commands land in `bootstrap.ran` and all succeed."""
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", tree / "bootstrap.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ran = []

    def record(command: list[str], env: dict[str, str] | None = None) -> int:
        module.ran.append((command, env))
        return 0

    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS", "FEDRAY_WHEELS", "FEDRAY_PIP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # main() changes it
    monkeypatch.setattr("venv.create", lambda path, with_pip: Path(path).mkdir(exist_ok=True))
    monkeypatch.setattr(subprocess, "call", record)
    monkeypatch.setattr(subprocess, "check_call", record)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=""))
    monkeypatch.setattr(os, "execvp", lambda program, command: module.ran.append((command, None)))
    return module


def test_set_up_runs_once_and_again_when_a_pin_changes(bootstrap: ModuleType, tree: Path) -> None:
    bootstrap.main(["true"])
    first = len(bootstrap.ran)
    bootstrap.main(["true"])
    second = len(bootstrap.ran)
    with (tree / "constraints.txt").open("a") as file:
        file.write("another==1.0\n")
    bootstrap.main(["true"])
    assert (first, second, len(bootstrap.ran)) == (3, 4, 7)


def test_pins_hold_for_uv_and_the_command_follows(bootstrap: ModuleType, tree: Path) -> None:
    bootstrap.main(["fedray", "run"])
    _, (uv, _), (command, _) = bootstrap.ran
    assert uv[-4:] == ["-c", str(tree / "constraints.txt"), "-e", f"{tree}[dev]"]
    assert command == ["fedray", "run"]
    assert os.environ["PATH"].startswith(str(tree / ".venv" / "bin"))


def test_folder_of_wheels_is_the_only_source(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_WHEELS", "wheels")
    bootstrap.install()
    here = ["--no-index", "--find-links", os.path.abspath("wheels")]
    assert [[word for word in command if word in here] for command, _ in bootstrap.ran] == [here, here]


def test_find_links_of_pip_reach_uv(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "one two")
    bootstrap.install()
    assert bootstrap.ran[1][1]["UV_FIND_LINKS"] == "one,two"


def test_pip_installs_where_uv_fails(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "call", lambda *_, **__: 1)
    bootstrap.install()
    (pip, _), = bootstrap.ran
    assert pip[1:3] == ["-m", "pip"] and pip[-2] == "-e"


def test_failed_set_up_says_what_helps_and_is_not_taken_for_done(
        bootstrap: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> int:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "call", fail)
    with pytest.raises(SystemExit, match="FEDRAY_WHEELS"):
        bootstrap.main(["true"])
    assert not (tree / ".venv" / ".fedray-setup").exists()


def test_old_python_is_told_what_to_type(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11, this is 3\.9"):
        bootstrap.main(["true"])


def test_windows_is_sent_to_wsl(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        with pytest.raises(SystemExit, match="WSL"):
            bootstrap.main(["true"])


def refuse_all(listener: socket.socket, heard: list[bytes]) -> None:
    """Answer every caller as a proxy that refuses, and note what it asked for, until the listener closes."""
    while listener.fileno() >= 0:
        connection, _ = listener.accept()
        with connection:
            heard.append(connection.recv(1000))
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")


@pytest.mark.slow  # makes an environment with pip in it
def test_proxy_is_asked_for_the_packages(tree: Path) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse_all, args=(listener, heard), daemon=True).start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        env = {"PATH": os.environ["PATH"], "HOME": str(tree), "HTTPS_PROXY": proxy, "FEDRAY_PIP": "1",
               "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "https://packages.invalid/simple",
               "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
        command = [sys.executable, str(tree / "bootstrap.py"), "true"]
        asked = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert heard and heard[0].startswith(b"CONNECT packages.invalid:443")
    assert asked.returncode != 0 and "HTTPS_PROXY" in asked.stderr
