"""Print the lines of each Python file against the budget; the exit code is 1 if one is over it.

Run it from anywhere: `python experiments/tools/size.py [--budget 400]`.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fedray", "experiments", "tests")
BUDGET = 400  # lines of a file: more means two things are in one place


def sizes(root: Path) -> dict[str, int]:
    """Return the number of lines of every Python file of the project by its path."""
    inside = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    files = [root / "bootstrap.py", *inside]
    return {path.relative_to(root).as_posix(): len(path.read_text("utf-8").splitlines()) for path in files}


def main() -> int:
    """Print the table, largest file of each folder first, and say what is over budget."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--budget", type=int, default=BUDGET)
    budget = parser.parse_args().budget
    found = sizes(ROOT)
    folders: dict[str, list[tuple[int, str]]] = {}
    for path, lines in found.items():
        folders.setdefault(str(Path(path).parent), []).append((lines, path))
    for folder, files in sorted(folders.items()):
        print(f"{sum(lines for lines, _ in files):6} {folder}/")
        for lines, path in sorted(files, reverse=True):
            print(f"{lines:12} {Path(path).name}{'   OVER BUDGET' if lines > budget else ''}")
    over = [path for path, lines in found.items() if lines > budget]
    product = sum(lines for path, lines in found.items() if path.startswith("fedray/"))
    print(f"{sum(found.values())} lines in {len(found)} files, {product} of them in fedray/; "
          f"{len(over)} files over the budget of {budget}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
