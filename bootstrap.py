#!/usr/bin/env python3
"""Set fedray up in .venv, once, and run a command there: `python3.11 bootstrap.py fedray run`.

Needs Python 3.11 and nothing else. FEDRAY_WHEELS=DIR installs from a folder of wheels without a network (see
`make wheelhouse`), FEDRAY_PIP=1 leaves uv out. pip and uv both honour HTTP_PROXY and HTTPS_PROXY.
"""

import hashlib
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(HERE, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
BRIDGE = {"find-links": "UV_FIND_LINKS", "index-url": "UV_DEFAULT_INDEX", "proxy": "ALL_PROXY"}


def uv_environment():
    """Return the environment with pip's own settings handed over to uv, which does not read them."""
    env = dict(os.environ)
    for setting, name in BRIDGE.items():
        ask = [PYTHON, "-m", "pip", "config", "get", "global." + setting]
        told = subprocess.run(ask, check=False, capture_output=True, text=True).stdout.strip()
        value = os.environ.get("PIP_" + setting.upper().replace("-", "_")) or told
        if value:
            env.setdefault(name, ",".join(value.split()))
    return env


def install():
    """Make .venv and install fedray and its development tools: with uv, with pip where uv fails."""
    import venv  # not on every Debian: main() then says what to install

    wheels = os.environ.get("FEDRAY_WHEELS")
    source = ["--no-index", "--find-links", os.path.abspath(wheels)] if wheels else []
    what = source + ["-c", os.path.join(HERE, "constraints.txt"), "-e", HERE + "[dev]"]
    venv.create(VENV, with_pip=True)
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    if not os.environ.get("FEDRAY_PIP") and subprocess.call(pip + source + ["uv"]) == 0:
        uv = [PYTHON, "-m", "uv", "pip", "install", "-q", "--python", PYTHON]
        if subprocess.call(uv + what, env=uv_environment()) == 0:
            return
        print("fedray: uv could not install, trying pip", file=sys.stderr)
    subprocess.check_call(pip + what)


def main(command):
    """Install if the folder or a pinned version changed since the last time, then become the command."""
    if os.name == "nt":
        sys.exit("fedray runs on Linux and macOS. On Windows: `wsl --install`, then the same command in WSL.")
    if sys.version_info < (3, 11):
        sys.exit("fedray needs Python 3.11, this is %d.%d: python3.11 bootstrap.py" % sys.version_info[:2])
    inputs = [open(os.path.join(HERE, name)).read() for name in ("pyproject.toml", "constraints.txt")]
    setup = hashlib.sha256("\n".join([HERE] + inputs).encode()).hexdigest()  # bound to its folder
    stamp = os.path.join(VENV, ".fedray-setup")
    if not os.path.exists(stamp) or open(stamp).read() != setup:
        print("fedray: setting up .venv (once; about a minute, 1.7 GB)", file=sys.stderr)
        try:
            install()
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            sys.exit("fedray: the set-up failed: %s\nFix: FEDRAY_WHEELS=DIR without a network, HTTPS_PROXY "
                     "behind a proxy, apt install python3.11-venv on Debian and Ubuntu" % error)
        with open(stamp, "w") as file:
            file.write(setup)
    os.environ["PATH"] = os.path.join(VENV, "bin") + os.pathsep + os.environ.get("PATH", "")
    # without bytecode every process, each Ray worker too, compiles torch's sources: 3 s instead of 1.5 s
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:] or ["fedray", "--help"])
