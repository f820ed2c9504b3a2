"""From the configs of a grid to its distinct runs, all of them checked before the first starts."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gnexp.config.identity import identity, restore, run_name
from gnexp.config.keys import value_of
from gnexp.config.schema import KEYS, TrainConfig, UsageError
from gnexp.config.validation import problems, width_problems
from gnexp.runner import preflight
from gnexp.runner.build import initial_weights
from gnexp.runner.build.code_digest import checksum_of
from gnexp.runner.build.data import resolved
from gnexp.runner.checkpoint import load_states
from gnexp.runner.prepared_run import PreparedRun


def plan(configs: list[TrainConfig], numbers: Sequence[int] | None = None) -> list[PreparedRun]:
    """Return the distinct runs of a grid; raises UsageError listing all that is wrong.

    numbers: of the configs among those that were typed, by default their places.
    """
    found = [
        f"{name}= takes one value per grid: its runs share one report"
        for name, key in KEYS.items()
        if key.grid == "one" and len({repr(value_of(config, name)) for config in configs}) > 1
    ]
    good = []
    for config in configs:
        wrong = problems(config) or width_problems(config.model)
        found += wrong
        with _collecting(found):
            good += [resolved(config)] if not wrong else []
    checked: dict[str, PreparedRun | None] = {}
    for key, config in {_built_by(config): config for config in good if not found}.items():
        checked[key], wrong = preflight.check(config)
        found += wrong
    if not found:
        with _collecting(found):
            output_folder(configs[0].out, configs[0].study)
    if found:
        raise UsageError("\n".join(dict.fromkeys(found)))
    runs: dict[str, PreparedRun] = {}
    for number, config in zip(numbers or range(len(good)), good, strict=True):
        run = checked[_built_by(config)]
        name = run_name(config, run.data.checksum, checksum_of(run.code))
        run = dataclasses.replace(run, config=config, name=name, jobs=(number,))
        runs[name] = _joined(runs[name], run) if name in runs else run
    if found := [s for run in runs.values() for s in (_other_config(run), _gone_start(run)) if s]:
        raise UsageError("\n".join(dict.fromkeys(found)))
    return list(runs.values())


@contextlib.contextmanager
def _collecting(found: list[str]) -> Iterator[None]:
    try:
        yield
    except (ValueError, UsageError) as error:
        found.append(str(error))


def _joined(run: PreparedRun, other: PreparedRun) -> PreparedRun:
    seeds = list(dict.fromkeys([*run.config.seeds, *other.config.seeds]))
    config = dataclasses.replace(run.config, seeds=seeds)
    return dataclasses.replace(run, config=config, jobs=(*run.jobs, *other.jobs))


def _gone_start(run: PreparedRun) -> str:
    """Return a sentence if weights are gone from which a seed has still to start, "" if not."""
    config = run.config
    if config.init_from is None or initial_weights.is_there(config.init_from):
        return ""
    try:
        begun = {*load_states(run.stored), *run.stored.finished_seeds()}
    except ValueError:  # a corrupt file: after its repair a seed may have to start again
        begun = set()
    new = [seed for seed in config.seeds if config.force or seed not in begun]
    if not new:
        return ""
    return (
        f"init_from={config.init_from} does not exist, and seed {new[0]} of {run.name} has still to"
        " start from there; put it back, or type where it is now"
    )


def _other_config(run: PreparedRun) -> str:
    """Return a sentence if the folder of this name holds another config, "" if it does not."""
    checksums = run.data.checksum, checksum_of(run.code)
    try:
        stored = run.stored.result().get("config") or run.stored.config()
    except ValueError:  # a corrupt file, which is repaired later
        return ""
    with contextlib.suppress(ValueError, KeyError):  # of a config that is not of this gnexp
        if not stored or identity(restore(stored), *checksums) == identity(run.config, *checksums):
            return ""
    return f"{run.folder} holds a run of another config: move it away, or choose another study="


def _built_by(config: TrainConfig) -> str:
    """Return the values of all keys that building and checking looks at."""
    return str([value_of(config, name) for name, key in KEYS.items() if key.builds])


def output_folder(out: str, name: str, stale: Iterable[str] = ()) -> Path:
    """Make OUT/NAME, without the `stale` files of an earlier call, and return it.

    Raises UsageError when it cannot be written, and then leaves no trace.
    """
    folder = Path(out) / name
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)  # another call may do so at the same time
        with tempfile.TemporaryFile(dir=folder):
            pass
        for file in stale:
            (folder / file).unlink(missing_ok=True)
    except OSError as error:
        for part in made:
            with contextlib.suppress(OSError):  # never made, or in use by another call
                part.rmdir()
        reason = error.strerror or error
        raise UsageError(
            f"out={out}: {folder} cannot be written ({reason}); use another out=FOLDER"
        ) from error
    return folder
