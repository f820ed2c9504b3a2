"""What the tests share: an empty working folder and one way to run a command line."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from gnexp.cli import app

# Beside another busy process several OpenMP threads are many times slower than one.
torch.set_num_threads(1)


# They take longest. Begun first, none of them is left to one process when the other is done.
LONGEST = ("survives_kills", "studies", "train", "engine", "repair", "data_parallel", "lr_search")
LONGEST += ("orphans",)
SLOW = {
    f"tests/{line}" for line in (Path(__file__).parent / "slow_tests.txt").read_text().split("\n")
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="no commands, no test of slow_tests.txt")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; with `--fast` leave out what takes long."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)
    if config.getoption("--fast"):
        config.hook.pytest_deselected(items=[item for item in items if _is_slow(item)])
        items[:] = [item for item in items if not _is_slow(item)]


def _is_slow(item: pytest.Item) -> bool:
    """Return whether a test runs commands, or stands in slow_tests.txt."""
    return "workdir" in item.fixturenames or item.nodeid.partition("[")[0] in SLOW


DEVICE_COMMANDS = (("train",), ("measure",), ("bench",))


@dataclass
class Answer:
    """What a command line gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """An empty current directory, with the caches and the state of this test beside it."""
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return here


@pytest.fixture
def gnexp(workdir, capfd):
    """Run `gnexp WORDS...` in this process, in an empty directory; on the CPU unless typed."""

    def run(*words: str) -> Answer:
        typed = any(word.startswith(("device=", "--", "-s")) for word in words)
        if torch.cuda.is_available() and words[:1] in DEVICE_COMMANDS and not typed:
            words = (*words, "device=cpu")
        capfd.readouterr()
        code = app.main(list(words))
        return Answer(code, *capfd.readouterr())

    return run


@pytest.fixture
def no_report(monkeypatch) -> None:
    """Draw no report at the end of a command: figures take seconds."""
    for command in ("train", "measure"):
        monkeypatch.setattr(f"gnexp.cli.commands.{command}.make_report", lambda *_: "")


@pytest.fixture
def own_module(workdir) -> Callable[[str], str]:
    """Write a module that only the current directory has, and return its name."""
    name = f"own_{os.getpid()}_{workdir.parent.name.replace('-', '_')}"

    def write(source: str) -> str:
        (workdir / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        return name

    yield write
    sys.modules.pop(name, None)
    sys.path[:] = [folder for folder in sys.path if folder != str(workdir)]
