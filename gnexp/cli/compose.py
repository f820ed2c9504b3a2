"""Hydra composes: what is typed becomes a config, or one for each job of a grid."""

import argparse
import contextlib
import functools
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict
from omegaconf.errors import OmegaConfBaseException

from gnexp.cli.hydra_errors import sentence_of
from gnexp.config.files import config_folder, norm_names
from gnexp.config.resolve import expand
from gnexp.config.schema import COMMANDS, UsageError
from gnexp.config.validation import problems
from gnexp.norms import plugins

BASIC = ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper",)
BASIC += ("hydra._internal.core_plugins.basic_launcher.BasicLauncher",)


def composed(command: str, arguments: list[str]) -> tuple[list[tuple[list[str], Any]], bool]:
    """Return each job's overrides and config, and whether they are swept.

    Raises UsageError with what is wrong with any job, one sentence a line. Hydra's own runs of an
    application would compose every job twice, for as long as a small training takes.
    """
    with composer(command, arguments) as (loader, compose):
        try:
            common, swept = compose()
            _refuse_other_engines(common.hydra)
            if not swept:
                return [_handed_over(common)], False
            jobs = _split(loader, common)
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(sentence_of(error, command, arguments)) from error
        found: list[tuple[list[str], Any] | str] = []
        for number, job in enumerate(jobs):
            try:
                config = loader.load_sweep_config(common, job)
                with open_dict(config):
                    config.hydra.job.id = config.hydra.job.num = number
                found.append(_handed_over(config))
            except (HydraException, OmegaConfBaseException) as error:
                found.append(sentence_of(error, command, job))
    if wrong := [each for each in found if isinstance(each, str)]:
        if command == "train":
            wrong = [sentence for each in found for sentence in _job_sentences(each)]
        raise UsageError("\n".join(dict.fromkeys(wrong)))
    return found, True


def _split(loader: ConfigLoader, common: DictConfig) -> list[list[str]]:
    """Return the overrides of each job of a grid."""
    swept = [f"{key}={value}" for key, value in (common.hydra.sweeper.params or {}).items()]
    swept += OmegaConf.to_container(common.hydra.overrides.task)
    parsed = OverridesParser.create(loader).parse_overrides(swept)
    for override in parsed:
        if override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
            if twice := [value for value in values if values.count(value) > 1]:
                raise UsageError(
                    f"{override.input_line} names {twice[0]} twice; type each value once"
                )
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
    except UsageError as mistake:
        return str(mistake).splitlines()


def _refuse_other_engines(hydra_node: DictConfig) -> None:
    """Refuse sweepers and launchers that would not hand their jobs over to this process."""
    for part in (hydra_node.sweeper, hydra_node.launcher):
        if part._target_ not in BASIC:
            raise UsageError(
                f"{part._target_} is not supported here: gnexp runs a grid itself, on workers=N"
                " processes, with Hydra's basic sweeper; gnexp train takes a launcher that is"
                " typed, as hydra/launcher=ray_cluster"
            )


@contextlib.contextmanager
def composer(
    command: str, arguments: list[str]
) -> Iterator[tuple[ConfigLoader, Callable[[], tuple[DictConfig, bool]]]]:
    """Yield Hydra's loader, and a function that composes what all jobs have in common.

    It returns, beside the config, whether the jobs are a grid; if not, it is the only job's.
    """
    store_configs()
    flags = get_args_parser().parse_args(arguments)
    path = create_config_search_path(os.path.abspath(flags.config_path or config_folder()))
    if flags.config_dir:
        folder = os.path.abspath(flags.config_dir)
        if not os.path.isdir(folder):
            raise UsageError(f"--config-dir {flags.config_dir} is not a folder")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
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


def flags_of(command: str, arguments: list[str]) -> argparse.Namespace | None:
    """Return what is typed as Hydra parses it, None after --version, which that answers.

    Raises UsageError for a flag that it does not know.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            flags = get_args_parser().parse_args(arguments)
    except SystemExit as leaving:
        if not leaving.code:
            return None
        reason = output.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UsageError(f"{reason}; see gnexp {command} --help") from leaving
    if flags.experimental_rerun:
        raise UsageError(
            "--experimental-rerun is not supported: the same command again goes on where it ended"
        )
    return flags


def store_configs() -> None:
    """Give Hydra what is in no YAML file: the types of keys, and the norms that plug-ins name."""
    _scan_plugins()
    _store_schemas()
    store = ConfigStore.instance()
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


@functools.cache
def _store_schemas() -> None:
    for name, schema in COMMANDS.items():
        ConfigStore.instance().store(f"{name}_schema", schema)
