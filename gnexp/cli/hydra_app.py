"""Run a command with the configs that Hydra composes, or let Hydra answer, launch or optimize.

All configs of a grid are collected first; the command then checks every one of them before it
starts the first.
"""

import contextlib
import io
import logging
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra

from gnexp.cli import launchers, sweepers
from gnexp.cli.argv import arranged, flags_of
from gnexp.cli.compose import ERRORS, jobs_of, store_configs
from gnexp.cli.hydra_errors import sentence_of
from gnexp.config.files import config_folder
from gnexp.config.schema import COMMANDS, UsageError
from gnexp.config.unknown import unknown


def run(command: str, arguments: list[str]) -> int:
    """Compose and run one command; returns the exit code. Raises UsageError."""
    if command not in COMMANDS:
        sentence = unknown(f"{command} is no command", command, COMMANDS, listed=())
        raise UsageError(f"{sentence} See gnexp --help")
    arguments = arranged(command, arguments)
    if flags_of(arguments) is None:
        return _answer_question(command, arguments)
    typed = shlex.join(["gnexp", command, *arguments])
    ours, others = launchers.split(arguments) if command == "train" else ([], arguments)
    launcher = launchers.chosen(ours)
    if command == "train" and (sweeper := sweepers.chosen(arguments)):
        if launcher != "basic":
            raise UsageError(
                f"hydra/sweeper={sweeper} trains in this process: leave hydra/launcher={launcher}"
                " out"
            )
        return sweepers.optimize(sweeper, arguments, typed, partial(_run_hydra, "train"))
    jobs, grid = jobs_of(command, others)
    if launcher != "basic":
        return launchers.train(launcher, jobs, ours, others, typed)
    return _dispatch(command, [config for job in jobs for config in job], grid, typed)


def compose(command: str, arguments: list[str]) -> tuple[list[Any], bool, str]:
    """Return the configs of what would be typed after `gnexp COMMAND`, for callers in Python.

    Beside them whether they form a grid, and the command line. Raises UsageError as `run` does, and
    for what is for a command line alone.
    """
    for argument in arguments:
        flag = argument.startswith("-") and argument not in ("-m", "--multirun")
        if flag or re.match(r"\+{0,2}hydra[./]", argument):
            raise UsageError(f"{argument} is for the command line: gnexp {command} {argument}")
    arguments = arranged(command, list(arguments))
    jobs, grid = jobs_of(command, arguments)
    typed = shlex.join(["gnexp", command, *arguments])
    return [config for job in jobs for config in job], grid, typed


def _dispatch(command: str, configs: list[Any], grid: bool, typed: str) -> int:
    function = getattr(import_module(f"gnexp.cli.commands.{command}"), command)
    if command == "train":
        return function(configs, typed, grid)
    if command == "check":
        return function(configs, typed)
    if grid:
        bench = command == "bench"
        instead = "type lists, such as norms=[bn,gn]" if bench else "name one study, as study=main"
        instead += ", or two to compare, as study=[main,smoke]" if command == "report" else ""
        raise UsageError(f"gnexp {command} takes no --multirun; {instead}")
    return function(configs[0], typed) if command == "bench" else function(configs[0])


def _answer_question(command: str, arguments: list[str]) -> int:
    """Let Hydra print what is asked for: its help, the config, the completion of a shell."""

    def task(config: Any) -> None:
        flags = " ".join(a for a in arguments if a.startswith("-"))
        raise UsageError(f"{flags} asks Hydra for nothing; see gnexp {command} --help")

    output = io.StringIO()
    try:
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(output):
            _run_hydra(command, arguments, task, scratch)
    except SystemExit as leaving:
        if leaving.code:
            reason = output.getvalue().strip().splitlines()[-1].partition("error: ")[2]
            raise UsageError(f"{reason}; see gnexp {command} --help") from leaving
    except ValueError as error:  # of flags that exclude each other
        raise UsageError(str(error)) from error
    sys.stderr.write(output.getvalue())
    return 0


def _run_hydra(
    command: str, arguments: list[str], task: Callable[[Any], Any], scratch: str
) -> None:
    """Let Hydra do all that is typed, and call `task` with each job's config.

    That is to answer a question, or to let a sweeper choose. What Hydra writes goes to `scratch`,
    and what it does to logging, which is to send all to the standard output of now, ends here.
    """
    store_configs()
    app = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=command)
    before, root = sys.argv, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # The completion that is installed is for the program's name, each of its words.
    program = "gnexp" if "-sc" in arguments else f"gnexp {command}"
    sys.argv = [program, *arguments, f"hydra.sweep.dir={scratch}"]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        app(task)()
    except ERRORS as error:
        raise UsageError(sentence_of(error, command, arguments)) from error
    finally:
        sys.argv = before
        root.handlers[:] = handlers
        root.setLevel(level)
        GlobalHydra.instance().clear()
