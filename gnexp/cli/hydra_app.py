"""Read the arguments after `gnexp`, let Hydra compose configs, and run the command.

All configs of a grid are collected first; the command then checks every one of them before it
starts the first.
"""

import contextlib
import logging
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from gnexp.cli import launchers, sweepers
from gnexp.cli.compose import composed, composer, flags_of, store_configs
from gnexp.cli.hydra_errors import sentence_of, unknown_key
from gnexp.cli.launchers import HydraJob, quoted
from gnexp.config.files import config_folder, keys_of, norm_names, norm_options, truth_keys
from gnexp.config.resolve import expand
from gnexp.config.schema import COMMANDS, CUSTOM, UsageError
from gnexp.config.unknown import unknown
from gnexp.config.validation import problems, unused_problems
from gnexp.norms import plugins

# Flags that Hydra answers itself: no job is composed.
QUESTIONS = ("help", "hydra_help", "cfg", "info", "shell_completion")
GROUPS = ("norm", "model", "data", "privacy", "experiment")
# Of which Hydra makes a number, a truth value or nothing, where the name of a choice is meant.
NO_NAME = r"[-+]?(\d[\d_.]*(e[-+]?\d+)?|inf|nan)|true|false|null"
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")  # that Hydra would write to; a study has its own
# Choices that need an import path or a name beside them, which norm=glob(*) cannot give.
NOT_IN_GLOBS = {"norm": "custom", "model": "[custom,torchvision,timm]"}


def run(command: str, arguments: list[str]) -> int:
    """Compose and run one command; returns the exit code. Raises UsageError."""
    if command not in COMMANDS:
        sentence = unknown(f"{command} is no command", command, COMMANDS, listed=())
        raise UsageError(f"{sentence} See gnexp --help")
    arguments = _arranged(command, arguments)
    ours, others = launchers.split(arguments)
    flags = flags_of(command, arguments)
    if flags is None or any(getattr(flags, question) for question in QUESTIONS):
        if flags is not None:
            _answer_question(command, arguments)
        return 0
    if command == "train":
        launcher = launchers.chosen(ours) if ours else "basic"
        if sweeper := sweepers.chosen(arguments):
            return _optimize(sweeper, launcher, arguments)
        if launcher != "basic":
            return _launch(launcher, ours, others, arguments)
    jobs, grid = _collect(command, arguments)
    configs = [config for job in jobs for config in job.configs]
    return _dispatch(command, configs, grid, _typed(command, arguments))


def _arranged(command: str, arguments: list[str]) -> list[str]:
    """Return the arguments as Hydra takes them; raises UsageError for those it would misread."""
    for argument in arguments:
        if not argument.isascii() and any("\ud800" <= sign <= "\udfff" for sign in argument):
            # As from a file name that is not UTF-8: no config could be written, or be read again.
            raise UsageError(f"{argument!a} holds bytes that are not UTF-8: rename what it names")
    arguments = [_readable(argument) for argument in arguments]
    arguments = _prepare(arguments) if command in ("train", "check") else arguments
    _refuse_odd_overrides(command, arguments)
    # argparse wants flags and key=value not mixed; people type -m anywhere.
    return sorted(arguments, key=lambda a: "=" in a and not a.startswith("-"))


def compose(command: str, arguments: list[str]) -> tuple[list[Any], bool, str]:
    """Return the configs of what would be typed after `gnexp COMMAND`, for callers in Python.

    Beside them whether they form a grid, and the command line. Raises UsageError as `run` does, and
    for what is for a command line alone. A Hydra application that calls this finds its own state.
    """
    for argument in arguments:
        flag = argument.startswith("-") and argument not in ("-m", "--multirun")
        if flag or re.match(r"\+{0,2}hydra[./]", argument):
            raise UsageError(f"{argument} is for the command line: gnexp {command} {argument}")
    arguments = _arranged(command, list(arguments))
    outer, job = GlobalHydra.instance(), HydraConfig.instance()
    before, outer.hydra = (outer.hydra, job.cfg), None
    try:
        jobs, grid = _collect(command, arguments)
    finally:
        outer.hydra, job.cfg = before
    return [each for job in jobs for each in job.configs], grid, _typed(command, arguments)


def _typed(command: str, arguments: list[str]) -> str:
    return shlex.join(["gnexp", command, *arguments])


def _launch(name: str, ours: list[str], others: list[str], arguments: list[str]) -> int:
    """Check a grid as if it ran here, then train it through the launcher that is typed.

    ours, others: the arguments about the launcher, and all others.
    """
    from gnexp.cli.commands.train import train

    jobs, _ = _collect("train", others)
    configs = [config for job in jobs for config in job.configs]
    typed = _typed("train", arguments)
    options = launchers.launch_options(configs[0], others)
    with composer("train", [*others, *ours, *options]) as (loader, compose):
        try:
            config, _ = compose()
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(launchers.option_sentence(name, error)) from error
        job = launchers.Job(os.getcwd(), typed)
        launch = launchers.Launching(name, jobs, loader, config, job)
        return train(configs, typed, grid=True, launch=launch)


def _dispatch(command: str, configs: list[Any], grid: bool, typed: str) -> int:
    from importlib import import_module

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


def _prepare(arguments: list[str]) -> list[str]:
    """Choose a group's custom entry when its _target_ is typed, and let its own keys be typed.

    Those are any norm.KEY, and any model.options.KEY, of a library's model too.
    """
    arguments = [f"++{a}" if a.startswith("model.options.") else a for a in arguments]
    chosen = [a.partition("=")[2] for a in arguments if a.startswith("norm=")]
    if chosen and not plugins.usable(norm_names()).keys().isdisjoint(
        re.findall(r"[\w-]+", chosen[0])
    ):
        arguments = [f"++{a}" if a.startswith("norm.") else a for a in arguments]
    for group in ("norm", "model"):
        if not any(a.lstrip("+").startswith(f"{group}._target_=") for a in arguments):
            continue
        chosen = f"{group}={CUSTOM}"
        typed = [a for a in arguments if a.startswith(f"{group}=") and a != chosen]
        if typed:
            raise UsageError(
                f"{typed[0]} and {group}._target_= exclude each other: type one of them"
            )
        if group == "norm":
            arguments = [f"++{a}" if a.startswith("norm.") else a for a in arguments]
        arguments = [chosen, *(a for a in arguments if a != chosen)]
    return arguments


def _readable(argument: str) -> str:
    """Return an argument with quotes where Hydra's grammar needs them: data.root=~/images.

    A glob over norms or models leaves out what needs more than a name.
    """
    key, _, value = argument.partition("=")
    if argument.startswith("-") or not value:
        return argument
    if key in NOT_IN_GLOBS and (found := re.fullmatch(r"glob\(([^,=\[\]()]+)\)", value)):
        return f"{key}=glob({found[1]},exclude={NOT_IN_GLOBS[key]})"
    if re.search(r"['\"\[\](){}]", value) or (value.isascii() and "~" not in value):
        return argument
    parts = value.split(",")
    odd = [not part.isascii() or "~" in part for part in parts]
    shown = (quoted(part) if so else part for part, so in zip(parts, odd, strict=True))
    return f"{key}={','.join(shown)}"


def _refuse_odd_overrides(command: str, arguments: list[str]) -> None:
    """Refuse what Hydra would take in silence and not as it was meant.

    That is a key typed twice (the last counts), a list for a group (it merges the choices), a new
    key (nobody reads it), a key taken away, a folder of Hydra's, and a number for a truth value.
    """
    truths = truth_keys(COMMANDS[command])
    seen: dict[str, str] = {}
    known = {*keys_of(COMMANDS[command]), *GROUPS}
    for argument in arguments:
        if argument.startswith("~"):
            raise UsageError(f"{argument}: no key can be taken away; give it another value")
        if argument.startswith("-") or "=" not in argument:
            continue
        key, _, value = argument.partition("=")
        key = key.lstrip("+")
        if not key:
            raise UsageError(f"{argument} names no key; write key=value, such as batch=2")
        if key in FOLDERS:
            raise UsageError(
                f"{argument} is not used: a study has its own folder; type out=FOLDER, and"
                " study=NAME for a folder in it"
            )
        open_group = re.split(r"[./]", key)[0] in ("norm", "hydra")
        open_group = open_group or key.startswith("model.options.")
        if argument.startswith("+") and not open_group and key not in known:
            raise UsageError(unknown_key(key, command))
        if key in seen:
            raise UsageError(f"{key} is typed twice, {seen[key]} and {argument}: keep one of them")
        seen[key] = argument
        number = r"[-+]?[\d_.]*\d[\d_.]*(e[-+]?\d+)?"
        for choice in value.split(",") if key in truths else ():
            if re.fullmatch(number, choice.strip(), re.IGNORECASE) and choice.strip() not in "01":
                raise UsageError(f"{key}={choice.strip()} must be true or false")
        for choice in value.split(",") if key in GROUPS else ():
            if re.fullmatch(NO_NAME, choice.strip(), re.IGNORECASE):
                raise UsageError(
                    sentence_of(Exception(f"Could not find '{key}/{choice}'"), command)
                )
        if key in GROUPS and value.lstrip("'\"").startswith("["):
            names = value.strip("'\"[]")
            raise UsageError(
                f"{argument}: {key} takes one choice; for a grid type -m {key}={names}"
            )


def _run_hydra(
    command: str, arguments: list[str], task: Callable[[Any], Any], scratch: str
) -> None:
    """Let Hydra do all that is typed, and call `task` with each job's config.

    That is to answer a question, or to let a sweeper choose. What Hydra writes goes to `scratch`.
    """
    store_configs()
    app = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=command)
    with _hydra_arguments(command, arguments, scratch):
        try:
            app(task)()
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(sentence_of(error, command, arguments)) from error


def _optimize(name: str, launcher: str, arguments: list[str]) -> int:
    """Let an optimizing sweeper start trainings, one after the other."""
    if launcher != "basic":
        raise UsageError(
            f"hydra/sweeper={name} trains in this process: leave hydra/launcher={launcher} out"
        )
    words = sweepers.arguments_for(name, arguments)

    def run(task: Callable[[Any], Any], scratch: Path) -> None:
        _run_hydra("train", words, task, str(scratch))

    return sweepers.optimize(name, _typed("train", arguments), run)


def _answer_question(command: str, arguments: list[str]) -> None:
    """Let Hydra print what is asked for: its help, the config, the completion of a shell."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(SystemExit):
        try:
            _run_hydra(command, arguments, lambda config: None, scratch)
        except ValueError as error:  # of flags that exclude each other
            raise UsageError(str(error)) from error


def _collect(command: str, arguments: list[str]) -> tuple[list[HydraJob], bool]:
    """Return the jobs that are typed with their configs, and whether they form a grid."""
    found, swept = composed(command, arguments)
    jobs: list[HydraJob] = []
    typed = dict(a.lstrip("+").split("=", 1) for a in arguments if re.match(r"[^-][^=]*=", a))
    for overrides, config in found:
        if "together" in typed and isinstance(config.together, dict):
            typed = {**{key: str(value) for key, value in config.together.items()}, **typed}
        config.out = os.path.expanduser(config.out)
        configs = expand(config) if command == "train" else [config]
        jobs.append(HydraJob(overrides, configs))
    configs = [each for job in jobs for each in job.configs]
    grid = swept or len(configs) > 1
    broken = command == "train" and any(map(problems, configs))
    if not broken and (unused := unused_problems(command, typed, configs, grid)):
        raise UsageError("\n".join(unused))
    if command in ("train", "check"):
        for each in (each for job in jobs for each in job.configs):
            _refuse_odd_options(command, each.norm)
        chosen = [each.norm.get("name") for job in jobs for each in job.configs]
        for sentence in (*plugins.shadowed(chosen, norm_names()), *plugins.unreadable()):
            print(f"gnexp: {sentence}", file=sys.stderr)
    return jobs, grid


@contextlib.contextmanager
def _hydra_arguments(command: str, arguments: list[str], scratch: str) -> Iterator[None]:
    """Show Hydra its command line, let it raise, and keep what it writes in a scratch folder.

    It may send all that anybody logs to the standard output of this moment, which ends here.
    """
    before_argv, before_full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # The completion that is installed is for the program's name, each of its words.
    program = "gnexp" if "-sc" in arguments else f"gnexp {command}"
    sys.argv = [program, *arguments, f"hydra.sweep.dir={scratch}"]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before_argv
        root.handlers[:] = handlers
        root.setLevel(level)
        GlobalHydra.instance().clear()
        if before_full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before_full


def _refuse_odd_options(command: str, norm: dict[str, Any]) -> None:
    """Refuse an option that Hydra added to a norm of gnexp which has none of that name."""
    if (name := norm.get("name")) not in norm_names():
        return
    valid = norm_options(name)
    for key in norm:
        if key != "name" and f"norm.{key}" not in valid:
            raise UsageError(unknown_key(f"norm.{key}", command, [f"norm={name}"]))
