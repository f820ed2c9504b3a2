"""What the tests share: an empty working folder and one way to run a command line."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from gnexp import cli

# Beside another busy process several OpenMP threads are many times slower than one.
torch.set_num_threads(1)


@dataclass
class Answer:
    """What a command line gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """An empty current directory, with the caches of this test beside it."""
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return here


@pytest.fixture
def gnexp(workdir, capfd):
    """Run `gnexp WORDS...` in this process, in an empty directory."""

    def run(*words: str) -> Answer:
        capfd.readouterr()
        code = cli.main(list(words))
        return Answer(code, *capfd.readouterr())

    return run
