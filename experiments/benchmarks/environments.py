"""Make the environment of each peer, once: a folder `.peers/NAME` at the top of the repository, git-ignored.

Only torch and the peer with what it requires are installed; torch is held at one version for all, so that
the systems compute with the same kernels. A stamp says that an environment is complete.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".peers"
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """A library to compare with: what pip installs and the module that runs it."""

    requirement: str
    module: str


PEERS = {"flwr": Peer("flwr[simulation]==1.41.0", "flwr_run"),
         "pfl": Peer("pfl==0.6.0", "pfl_run"),
         "fluke": Peer("fluke-fl==0.8.1", "fluke_run")}


def python_of(name: str) -> str:
    """Return the interpreter of a peer's environment; make the environment where it is not complete.

    torch is installed first with pip alone, which takes a build for the CPU where pip is set up to find one.
    """
    folder, peer = FOLDER / name, PEERS[name]
    python, stamp = folder / "bin" / "python", folder / "complete.txt"
    wanted = f"{TORCH} {peer.requirement}\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making {folder.relative_to(FOLDER.parent)}: {peer.requirement}", flush=True)
        FOLDER.mkdir(exist_ok=True)
        constraints = FOLDER / "constraints.txt"
        constraints.write_text(f"{TORCH}\n")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, TORCH, "numpy"], check=True)
        subprocess.run([*pip, "--constraint", str(constraints), peer.requirement], check=True)
        stamp.write_text(wanted)
    return str(python)
