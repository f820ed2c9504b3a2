"""Hydra composes, gnexp runs.

All configs of a grid are collected first; the command then checks every one of them before it
starts the first. What Hydra finds wrong becomes one sentence.
"""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict
from omegaconf.errors import OmegaConfBaseException

from gnexp import launching, optimizing, plugins
from gnexp.config import COMMANDS, CUSTOM, TAKES_GROUPS, Mistake, expand
from gnexp.launching import HydraJob
from gnexp.rules import problems

# Flags that Hydra answers itself: no job is composed.
QUESTIONS = ("help", "hydra_help", "cfg", "info", "shell_completion")
GROUPS = ("norm", "model", "data", "privacy", "experiment")
# Of which Hydra makes a number, a truth value or nothing, where the name of a choice is meant.
NO_NAME = r"[-+]?(\d[\d_.]*(e[-+]?\d+)?|inf|nan)|true|false|null"
BASIC = ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper",)
BASIC += ("hydra._internal.core_plugins.basic_launcher.BasicLauncher",)


def config_folder() -> Path:
    """Return the folder of YAML files: the checkout's for an editable install, or the wheel's."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "configs"
    return checkout if (checkout / "train.yaml").is_file() else package / "configs"


def run(command: str, arguments: list[str]) -> int:
    """Compose and run one command; returns the exit code, raises Mistake for a user's mistake."""
    if command not in COMMANDS:
        near = _nearest(command, list(COMMANDS))
        raise Mistake(f"unknown command {command!r}; did you mean {near}? See gnexp --help")
    arguments = _arranged(command, arguments)
    ours, others = launching.split(arguments)
    flags = _flags(command, arguments)
    if flags is None or any(getattr(flags, question) for question in QUESTIONS):
        if flags is not None:
            _answer_question(command, arguments)
        return 0
    if command == "train":
        launcher = launching.chosen(ours) if ours else "basic"
        if sweeper := optimizing.chosen(arguments):
            return _optimize(sweeper, launcher, arguments)
        if launcher != "basic":
            return _launch(launcher, ours, others, arguments)
    jobs, grid = _collect(command, arguments)
    configs = [config for job in jobs for config in job.configs]
    return _dispatch(command, configs, grid, _typed(command, arguments))


def _arranged(command: str, arguments: list[str]) -> list[str]:
    """Return the arguments as Hydra takes them; raises Mistake for those it would misread."""
    arguments = _prepare(arguments) if command in ("train", "check") else arguments
    _refuse_odd_overrides(command, arguments)
    # argparse wants flags and key=value not mixed; people type -m anywhere.
    return sorted(arguments, key=lambda a: "=" in a and not a.startswith("-"))


def compose(command: str, arguments: list[str]) -> tuple[list[Any], bool, str]:
    """Return the configs of what would be typed after `gnexp COMMAND`, for callers in Python.

    Beside them whether they form a grid, and the command line. Raises Mistake as `run` does, and
    for what is for a command line alone. A Hydra application that calls this finds its own state.
    """
    for argument in arguments:
        flag = argument.startswith("-") and argument not in ("-m", "--multirun")
        if flag or re.match(r"\+{0,2}hydra[./]", argument):
            raise Mistake(f"{argument} is for the command line: gnexp {command} {argument}")
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
    from gnexp.commands.train import train

    jobs, _ = _collect("train", others)
    configs = [config for job in jobs for config in job.configs]
    typed = _typed("train", arguments)
    options = launching.launch_options(configs[0], others)
    with _composer("train", [*others, *ours, *options]) as (loader, compose):
        try:
            config, _ = compose()
        except (HydraException, OmegaConfBaseException) as error:
            raise Mistake(launching.option_sentence(name, error)) from error
        job = launching.Job(os.getcwd(), typed)
        launch = launching.Launching(name, jobs, loader, config, job)
        return train(configs, typed, grid=True, launch=launch)


def _dispatch(command: str, configs: list[Any], grid: bool, typed: str) -> int:
    from importlib import import_module

    function = getattr(import_module(f"gnexp.commands.{command}"), command)
    if command == "train":
        return function(configs, typed, grid)
    if command == "check":
        return function(configs, typed)
    if grid:
        bench = command == "bench"
        instead = "type lists, such as norms=[bn,gn]" if bench else "name one study, as study=main"
        instead += ", or two to compare, as study=[main,smoke]" if command == "report" else ""
        raise Mistake(f"gnexp {command} takes no --multirun; {instead}")
    return function(configs[0], typed) if command == "bench" else function(configs[0])


def _prepare(arguments: list[str]) -> list[str]:
    """Choose a group's custom entry when its _target_ is typed, and let its own keys be typed.

    Those are any norm.KEY, and any model.options.KEY, of a library's model too.
    """
    arguments = [f"++{a}" if a.startswith("model.options.") else a for a in arguments]
    chosen = [a.partition("=")[2] for a in arguments if a.startswith("norm=")]
    if chosen and not plugins.usable(_norms()).keys().isdisjoint(re.findall(r"[\w-]+", chosen[0])):
        arguments = [f"++{a}" if a.startswith("norm.") else a for a in arguments]
    for group in ("norm", "model"):
        if not any(a.lstrip("+").startswith(f"{group}._target_=") for a in arguments):
            continue
        chosen = f"{group}={CUSTOM}"
        typed = [a for a in arguments if a.startswith(f"{group}=") and a != chosen]
        if typed:
            raise Mistake(f"{typed[0]} and {group}._target_= exclude each other: type one of them")
        if group == "norm":
            arguments = [f"++{a}" if a.startswith("norm.") else a for a in arguments]
        arguments = [chosen, *(a for a in arguments if a != chosen)]
    return arguments


def _refuse_odd_overrides(command: str, arguments: list[str]) -> None:
    """Refuse what Hydra would take in silence and not as it was meant.

    That is a key typed twice (the last counts), a list for a group (it merges the choices), a new
    key (nobody reads it), and a key taken away.
    """
    seen: dict[str, str] = {}
    known = {*_keys(COMMANDS[command]), *GROUPS}
    for argument in arguments:
        if argument.startswith("~"):
            raise Mistake(f"{argument}: no key can be taken away; give it another value")
        if argument.startswith("-") or "=" not in argument:
            continue
        key, _, value = argument.partition("=")
        key = key.lstrip("+")
        open_group = re.split(r"[./]", key)[0] in ("norm", "hydra")
        open_group = open_group or key.startswith("model.options.")
        if argument.startswith("+") and not open_group and key not in known:
            raise Mistake(_unknown_key(key, command))
        if key in seen:
            raise Mistake(f"{key} is typed twice, {seen[key]} and {argument}: keep one of them")
        seen[key] = argument
        for choice in value.split(",") if key in GROUPS else ():
            if re.fullmatch(NO_NAME, choice.strip(), re.IGNORECASE):
                raise Mistake(_sentence(Exception(f"Could not find '{key}/{choice}'"), command))
        if key in GROUPS and value.lstrip("'\"").startswith("["):
            names = value.strip("'\"[]")
            raise Mistake(f"{argument}: {key} takes one choice; for a grid type -m {key}={names}")


def _run_hydra(
    command: str, arguments: list[str], task: Callable[[Any], Any], scratch: str
) -> None:
    """Let Hydra do all that is typed, and call `task` with each job's config.

    That is to answer a question, or to let a sweeper choose. What Hydra writes goes to `scratch`.
    """
    _store_configs()
    app = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=command)
    with _hydra_arguments(command, arguments, scratch):
        try:
            app(task)()
        except (HydraException, OmegaConfBaseException) as error:
            raise Mistake(_sentence(error, command, arguments)) from error


def _norms() -> list[str]:
    """Return the names of gnexp's own norms, without importing them."""
    names = sorted(path.stem for path in (config_folder() / "norm").glob("*.yaml"))
    return [name for name in names if name != CUSTOM]


def _store_configs() -> None:
    """Give Hydra what is in no YAML file: the types of keys, and the norms that plug-ins name."""
    _store_schemas()
    store = ConfigStore.instance()
    store.repo.pop("norm", None)  # what another call in this process found installed
    for name, plugin in plugins.usable(_norms()).items():
        store.store(name, plugin.node, group="norm", provider=plugin.package)


@functools.cache
def _store_schemas() -> None:
    for name, schema in COMMANDS.items():
        ConfigStore.instance().store(f"{name}_schema", schema)


def _optimize(name: str, launcher: str, arguments: list[str]) -> int:
    """Let a sweeper that optimizes call for trainings, one after the other."""
    if launcher != "basic":
        raise Mistake(
            f"hydra/sweeper={name} trains in this process: leave hydra/launcher={launcher} out"
        )
    words = optimizing.arguments_for(name, arguments)

    def run(task: Callable[[Any], Any], scratch: Path) -> None:
        _run_hydra("train", words, task, str(scratch))

    return optimizing.optimize(name, _typed("train", arguments), run)


def _answer_question(command: str, arguments: list[str]) -> None:
    """Let Hydra print what is asked for: its help, the config, the completion of a shell."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(SystemExit):
        try:
            _run_hydra(command, arguments, lambda config: None, scratch)
        except ValueError as error:  # of flags that exclude each other
            raise Mistake(str(error)) from error


def _flags(command: str, arguments: list[str]) -> argparse.Namespace | None:
    """Return what is typed as Hydra parses it, None after --version, which that answers.

    Raises Mistake for a flag that it does not know.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            flags = get_args_parser().parse_args(arguments)
    except SystemExit as leaving:
        if not leaving.code:
            return None
        reason = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise Mistake(f"{reason}; see gnexp {command} --help") from leaving
    if flags.experimental_rerun:
        raise Mistake(
            "--experimental-rerun is not supported: the same command again goes on where it ended"
        )
    return flags


def _collect(command: str, arguments: list[str]) -> tuple[list[HydraJob], bool]:
    """Return the jobs that are typed with their configs, and whether they form a grid."""
    found, swept = _composed(command, arguments)
    jobs: list[HydraJob] = []
    for overrides, config in found:
        config.out = os.path.expanduser(config.out)
        configs = expand(config) if command == "train" else [config]
        jobs.append(HydraJob(overrides, configs))
    if command in ("train", "check"):
        for each in (each for job in jobs for each in job.configs):
            _refuse_odd_options(command, each.norm)
        chosen = [each.norm.get("name") for job in jobs for each in job.configs]
        for sentence in plugins.shadowed(chosen, _norms()):
            print(f"gnexp: {sentence}", file=sys.stderr)
    return jobs, swept or sum(len(job.configs) for job in jobs) > 1


def _composed(command: str, arguments: list[str]) -> tuple[list[tuple[list[str], Any]], bool]:
    """Return each job's overrides and config, and whether they are swept.

    Raises Mistake with what is wrong with any job, one sentence a line. Hydra's own runs of an
    application would compose every job twice, for as long as a small training takes.
    """
    with _composer(command, arguments) as (loader, compose):
        try:
            common, swept = compose()
            _refuse_other_engines(common.hydra)
            if not swept:
                return [_handed_over(common)], False
            jobs = _split(loader, common)
        except (HydraException, OmegaConfBaseException) as error:
            raise Mistake(_sentence(error, command, arguments)) from error
        found: list[tuple[list[str], Any] | str] = []
        for number, job in enumerate(jobs):
            try:
                config = loader.load_sweep_config(common, job)
                with open_dict(config):
                    config.hydra.job.id = config.hydra.job.num = number
                found.append(_handed_over(config))
            except (HydraException, OmegaConfBaseException) as error:
                found.append(_sentence(error, command, job))
    if wrong := [each for each in found if isinstance(each, str)]:
        if command == "train":
            wrong = [sentence for each in found for sentence in _job_sentences(each)]
        raise Mistake("\n".join(dict.fromkeys(wrong)))
    return found, True


def _split(loader: ConfigLoader, common: DictConfig) -> list[list[str]]:
    """Return the overrides of each job of a grid."""
    swept = [f"{key}={value}" for key, value in (common.hydra.sweeper.params or {}).items()]
    swept += OmegaConf.to_container(common.hydra.overrides.task)
    parsed = OverridesParser.create(loader).parse_overrides(swept)
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return [list(job) for job in jobs]


def _handed_over(config: DictConfig) -> tuple[list[str], Any]:
    """Return a job's overrides, and its config as the command takes it."""
    HydraConfig.instance().set_config(config)  # values may refer to it, as ${hydra:job.num}
    overrides = OmegaConf.to_container(config.hydra.overrides.task)
    with flag_override(config, ["struct", "readonly"], [False, False]):
        del config["hydra"]
    return overrides, OmegaConf.to_object(config)


def _job_sentences(job: tuple[list[str], Any] | str) -> list[str]:
    """Return what is wrong with a job: what Hydra found, or else the rules that it breaks."""
    if isinstance(job, str):
        return [job]
    try:
        return [sentence for config in expand(job[1]) for sentence in problems(config)]
    except Mistake as mistake:
        return str(mistake).splitlines()


@contextlib.contextmanager
def _composer(
    command: str, arguments: list[str]
) -> Iterator[tuple[ConfigLoader, Callable[[], tuple[DictConfig, bool]]]]:
    """Yield Hydra's loader, and a function that composes what all jobs have in common.

    It returns, beside the config, whether the jobs are a grid; if not, it is the only job's.
    """
    flags = get_args_parser().parse_args(arguments)
    path = create_config_search_path(os.path.abspath(flags.config_path or config_folder()))
    if flags.config_dir:
        folder = os.path.abspath(flags.config_dir)
        if not os.path.isdir(folder):
            raise Mistake(f"--config-dir {flags.config_dir} is not a folder")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    _store_configs()
    app = Hydra.create_main_hydra2(f"gnexp {command}", path)
    loader = app.config_loader

    def compose() -> tuple[DictConfig, bool]:
        # Without a look at whether values are lists of a sweep, since a preset may make it one.
        common = loader.load_configuration(
            flags.config_name or command,
            flags.overrides,
            RunMode.MULTIRUN,
            validate_sweep_overrides=False,
        )
        swept = flags.multirun or common.hydra.mode == RunMode.MULTIRUN
        mode = RunMode.MULTIRUN if swept else RunMode.RUN
        parsed = OverridesParser.create(loader).parse_overrides(flags.overrides)
        loader.validate_sweep_overrides_legal(parsed, mode, from_shell=True)
        return common, swept

    try:
        yield loader, compose
    finally:
        GlobalHydra.instance().clear()


def _refuse_other_engines(hydra_node: DictConfig) -> None:
    """Refuse sweepers and launchers that would not hand their jobs over to this process."""
    for part in (hydra_node.sweeper, hydra_node.launcher):
        if part._target_ not in BASIC:
            raise Mistake(
                f"{part._target_} is not supported here: gnexp runs a grid itself, on workers=N"
                " processes, with Hydra's basic sweeper; gnexp train takes a launcher that is"
                " typed, as hydra/launcher=ray_cluster"
            )


@contextlib.contextmanager
def _hydra_arguments(command: str, arguments: list[str], scratch: str) -> Iterator[None]:
    """Show Hydra its command line, let it raise, and keep what it writes in a scratch folder."""
    before_argv, before_full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    # The completion that is installed is for the program's name, each of its words.
    program = "gnexp" if "-sc" in arguments else f"gnexp {command}"
    sys.argv = [program, *arguments, f"hydra.sweep.dir={scratch}"]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before_argv
        GlobalHydra.instance().clear()
        if before_full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before_full


def _sentence(error: Exception, command: str, arguments: Sequence[str] = ()) -> str:
    """Turn Hydra's error into one sentence with the nearest valid choice.

    arguments: that it is about, among which the norm may be chosen.
    """
    text = str(error)
    cause = str(error.__cause__ or "")
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1].lstrip("+"), command, arguments)
    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, choice = found[1], found[2]
        if group == "norm":
            return plugins.unknown_norm(choice, _norms())
        valid = sorted(p.stem for p in (config_folder() / group).glob("*.yaml"))
        valid = [v for v in valid if v != CUSTOM]
        near = _nearest(choice, valid)
        return f"{group}={choice} is unknown; did you mean {near}? Valid: {', '.join(valid)}"
    if found := re.search(r"Error merging override (\S+)", text):
        wanted = _wanted_type(cause)
        return f"{found[1].lstrip('+')} must be {wanted}"
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, value = found[1].partition("=")
        if command == "report" and key == "study":
            return f"{found[1]} would be a sweep: to compare two studies type {key}=[{value}]"
        return f"{found[1]} is a sweep: type -m {found[1]}, or {key}=[{value}] for a list"
    if found := re.search(r"Missing mandatory value: (\S+)", text + cause):
        if found[1] == "_target_":  # OmegaConf leaves out what it is in, which is norm=custom
            return "norm._target_ must be given, as norm._target_=my_pkg.MyNorm"
        return f"{found[1]} must be given, as {found[1]}=VALUE"
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if "OverrideParse" in type(error).__name__:
        return f"cannot read what was typed ({first}); write key=value, quoted where a shell needs"
    return first


def _wanted_type(cause: str) -> str:
    """Return what a value should have been, from OmegaConf's reason."""
    kinds = {
        "Integer": "a whole number, such as 2",
        "Float": "a number, such as 0.1",
        "Boolean": "true or false",
        "not Optional": "a value, not null",
        "to string": "one word, not a list",
    }
    return next((text for kind, text in kinds.items() if kind in cause), cause.split("\n")[0])


def _unknown_key(key: str, command: str, arguments: Sequence[str] = ()) -> str:
    """Return the sentence for a key that the command does not have, or that a norm does not."""
    if key.startswith("norm.") and "norm" in _keys(COMMANDS[command]):
        return _unknown_option(key, command, arguments)
    near = _nearest(key, _keys(COMMANDS[command]))
    return f"{key} is not a key of gnexp {command}; did you mean {near}?"


def _unknown_option(key: str, command: str, arguments: Sequence[str]) -> str:
    """Return the sentence for a `norm.KEY` that the norm which is chosen, or one of them, lacks."""
    typed = [a.partition("=")[2] for a in arguments if a.startswith("norm=")]
    defaults = OmegaConf.load(config_folder() / f"{command}.yaml").defaults
    usual = [each.norm for each in defaults if "norm" in each]
    chosen = re.findall(r"[\w-]+", typed[0]) if typed else usual
    options = {name: _norm_options(name) for name in chosen if name in _norms()}
    lacking = (name for name, valid in options.items() if key not in valid)
    name = next(lacking, None)
    if name is None:
        return f"{key} is not an option of norm={','.join(chosen)}"
    own = "a norm of your own takes any, with norm._target_=my_pkg.MyNorm"
    if not options[name]:
        return f"{key} is not an option of norm={name}, which has none; {own}"
    valid = options[name]
    if name in TAKES_GROUPS and "group" in key:
        valid = [*valid, "groups", "channels_per_group"]
    bare = {word.removeprefix("norm."): word for word in valid}
    near = bare[_nearest(key.removeprefix("norm."), list(bare))]
    return (
        f"{key} is not an option of norm={name}; did you mean {near}?"
        f" Valid: {', '.join(valid)}; {own}"
    )


def _norm_options(name: str) -> list[str]:
    """Return the options of a norm of gnexp, as they are typed."""
    options = OmegaConf.load(config_folder() / "norm" / f"{name}.yaml")
    return [f"norm.{key}" for key in options if key != "name"]


def _refuse_odd_options(command: str, norm: dict[str, Any]) -> None:
    """Refuse an option that Hydra added to a norm of gnexp which has none of that name."""
    if (name := norm.get("name")) not in _norms():
        return
    valid = _norm_options(name)
    for key in norm:
        if key != "name" and f"norm.{key}" not in valid:
            raise Mistake(_unknown_option(f"norm.{key}", command, [f"norm={name}"]))


def _keys(schema: type, prefix: str = "") -> list[str]:
    """Return the names of all keys of a config, nested ones with dots."""
    names = []
    for field in dataclasses.fields(schema):
        names.append(prefix + field.name)
        if dataclasses.is_dataclass(field.type):
            names += _keys(field.type, f"{prefix}{field.name}.")
    return names


def _nearest(word: str, valid: list[str]) -> str:
    return difflib.get_close_matches(word, valid, n=1, cutoff=0.0)[0]
