"""The folder of a made-up run, for the tests of what is said about runs."""

import pytest

from tests.unit import sample_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return the folder of a made-up run, named as the command names it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "20261127-101500-icu-7f3a91"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(sample_run.CONFIG)
    (folder / "STATUS").write_text("done\n")
    (tmp_path / "runs" / "latest").symlink_to(folder.name)
    return folder
