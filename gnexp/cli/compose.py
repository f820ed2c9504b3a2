"""Hydra composes: the words after `gnexp COMMAND` become one config, or those of a grid's jobs."""

import argparse
import contextlib
import itertools
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from gnexp.cli.argv import GROUPS, flags_of, quoted
from gnexp.cli.hydra_errors import ambiguous, sentence_of, unknown_key
from gnexp.config.files import config_folder, norm_names, norm_options
from gnexp.config.resolve import expand
from gnexp.config.schema import COMMANDS, UsageError
from gnexp.config.unused import unused_problems
from gnexp.config.validation import PROBLEMS
from gnexp.norms import plugins

ERRORS = (HydraException, OmegaConfBaseException)


def jobs_of(command: str, arguments: list[str]) -> tuple[list[list[Any]], bool]:
    """Return the configs of every job that is typed, and whether they form a grid.

    A job has one config, or one for each rate of lr=[0.1,0.2]. Raises UsageError with all that is
    wrong with any job, one sentence a line.
    """
    composed, swept = _composed(command, arguments)
    jobs, wrong = [], []
    for config in composed:
        try:
            if isinstance(config, str):
                raise UsageError(config)
            config.out = os.path.expanduser(config.out)
            jobs.append(expand(config) if command == "train" else [config])
            wrong += [sentence for each in jobs[-1] for sentence in PROBLEMS[command](each)]
        except UsageError as mistake:
            wrong += str(mistake).splitlines()
    if wrong:
        raise UsageError("\n".join(dict.fromkeys(wrong)))
    configs = [config for job in jobs for config in job]
    grid = swept or len(configs) > 1
    if unused := unused_problems(command, _typed_keys(arguments, composed), configs, grid):
        raise UsageError("\n".join(unused))
    if command in ("train", "check"):
        _look_at_norms(command, [config.norm for config in configs])
    return jobs, grid


def _composed(command: str, arguments: list[str]) -> tuple[list[Any], bool]:
    """Return the config of each job, or in a sentence why it has none; and if jobs are swept."""
    flags = flags_of(arguments)
    name = flags.config_name or command
    with composer(command, flags):
        try:
            typed = _parsed(flags.overrides)
            sweeps = [each for each in typed if each.is_sweep_override()]
            if not (flags.multirun or sweeps):
                config = compose(name, flags.overrides, return_hydra_config=True)
                if config.hydra.mode != RunMode.MULTIRUN:
                    return [_handed_over(config)], False
            # A preset's axes, and Hydra's settings, hang on these alone. Norms may be swept, whose
            # keys the usual norm has not: the jobs show what is wrong.
            choices = (o for o in typed if o.key_or_group in GROUPS or o.is_hydra_override())
            fixed = [each.input_line for each in choices if not each.is_sweep_override()]
            hydra = compose(name, fixed, return_hydra_config=True).hydra
            if sweeps and not (flags.multirun or hydra.mode == RunMode.MULTIRUN):
                raise UsageError(ambiguous(command, sweeps[0].input_line))
            jobs = _split(hydra, typed)
        except ERRORS as error:
            raise UsageError(sentence_of(error, command, arguments)) from error
        return [_job(command, name, number, words) for number, words in enumerate(jobs)], True


def _parsed(overrides: list[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()  # which knows the choices of a glob
    return OverridesParser.create(loader).parse_overrides(overrides)


def _split(hydra: DictConfig, typed: list[Override]) -> list[list[str]]:
    """Return the overrides of each job of a grid; hydra: the node with a preset's axes."""
    _refuse_other_engines(hydra)
    own = {each.key_or_group for each in typed}
    preset = [f"{k}={v}" for k, v in (hydra.sweeper.params or {}).items() if k not in own]
    return [list(job) for job in itertools.product(*map(_words, [*_parsed(preset), *typed]))]


def _words(override: Override) -> list[str]:
    line = override.input_line
    if not override.is_sweep_override():
        return [line]
    if override.is_hydra_override():
        raise UsageError(f"{line}: a grid is of gnexp's keys, and Hydra's own take one value")
    if not override.is_discrete_sweep():
        raise UsageError(f"{line} is an interval: name values, or an optimizing hydra/sweeper= too")
    values = list(override.sweep_string_iterator())
    if twice := [value for value in values if values.count(value) > 1]:
        raise UsageError(f"{line} names {twice[0]} twice; type each value once")
    return [f"{override.get_key_element()}={value}" for value in values]


def _job(command: str, name: str, number: int, words: list[str]) -> Any:
    try:
        config = compose(name, words, return_hydra_config=True)
        with flag_override(config, "struct", False):
            config.hydra.job.id = config.hydra.job.num = number
        return _handed_over(config)
    except ERRORS as error:
        return sentence_of(error, command, words)


def _handed_over(config: DictConfig) -> Any:
    _refuse_other_engines(config.hydra)
    HydraConfig.instance().set_config(config)  # values may refer to it, as ${hydra:job.num}
    with flag_override(config, ["struct", "readonly"], [False, False]):
        del config["hydra"]
    return OmegaConf.to_object(config)


def _refuse_other_engines(hydra: DictConfig) -> None:
    """Refuse sweepers and launchers that would not hand their jobs over to this process."""
    for part in (hydra.sweeper, hydra.launcher):
        if not part._target_.endswith((".BasicSweeper", ".BasicLauncher")):
            raise UsageError(
                f"{part._target_} is not supported here: gnexp runs a grid itself, on workers=N"
                " processes, with Hydra's basic sweeper; gnexp train takes a launcher that is"
                " typed, as hydra/launcher=ray_cluster"
            )


@contextlib.contextmanager
def composer(command: str, flags: argparse.Namespace) -> Iterator[None]:
    """Let Hydra find configs of gnexp and the flags; an application around finds its own again."""
    store_configs()
    if flags.config_dir:
        folder = os.path.abspath(flags.config_dir)
        if not os.path.isdir(folder):
            raise UsageError(f"--config-dir {flags.config_dir} is not a folder")
        flags.overrides.append(f"hydra.searchpath=[{quoted(f'file://{folder}')}]")
    outer, job = GlobalHydra.instance(), HydraConfig.instance()
    before, outer.hydra = (outer.hydra, job.cfg), None
    try:
        main = os.path.abspath(flags.config_path or config_folder())
        initialize_config_dir(main, job_name=f"gnexp {command}", version_base="1.3")
        yield
    finally:
        outer.hydra, job.cfg = before


def _typed_keys(arguments: list[str], jobs: list[Any]) -> dict[str, str]:
    typed = dict(a.lstrip("+").split("=", 1) for a in arguments if re.match(r"[^-][^=]*=", a))
    for job in jobs if "together" in typed else ():
        if isinstance(job.together, dict):
            typed = {**{key: str(value) for key, value in job.together.items()}, **typed}
    return typed


def _look_at_norms(command: str, norms: list[dict[str, Any]]) -> None:
    """Refuse an option that was added to a norm of gnexp; tell of plug-ins that are passed over."""
    for norm in norms:
        valid = norm_options(norm.get("name"))
        for key in norm if norm.get("name") in norm_names() else ():
            if key != "name" and f"norm.{key}" not in valid:
                raise UsageError(unknown_key(f"norm.{key}", command, [f"norm={norm['name']}"]))
    chosen = [norm.get("name") for norm in norms]
    for sentence in (*plugins.shadowed(chosen, norm_names()), *plugins.unreadable()):
        print(f"gnexp: {sentence}", file=sys.stderr)


def store_configs() -> None:
    """Give Hydra what is in no YAML file: the types of keys, and the norms that plug-ins name."""
    _scan_plugins()
    store = ConfigStore.instance()
    for name, schema in COMMANDS.items():
        store.store(f"{name}_schema", schema)
    store.repo.pop("norm", None)  # what another call in this process found installed
    for name, plugin in plugins.usable(norm_names()).items():
        store.store(name, plugin.node, group="norm", provider=plugin.package)


def _scan_plugins() -> None:
    """Let Hydra import its own plug-ins; one that raises is named, and passed over."""
    while True:
        try:
            Plugins.instance()
            return
        except (Exception, SystemExit) as error:
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            scans = [f for f in frames if f.f_code is Plugins._scan_all_plugins.__code__]
            if not scans:
                raise
            name = scans[-1].f_locals["modname"]
            sys.modules[name] = None  # as of a module that is not there
            print(
                f"gnexp: {name}, a plug-in of Hydra, is passed over: importing it raised"
                f" {type(error).__name__}: {error}",
                file=sys.stderr,
            )
