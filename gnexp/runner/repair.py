"""Repair run folders: report corrupt files, move them aside, rebuild what a checkpoint allows.

Nothing is deleted: a corrupt file stays beside the others as NAME.corrupt. What can be derived is
derived again: tables and results from the checkpoint, statuses and configs by the call itself.
"""

from collections.abc import Callable
from typing import Any

from gnexp.runner.checkpoint import State, load_states
from gnexp.runner.trainer import progress_of, refill
from gnexp.store.files import CorruptFile
from gnexp.store.integrity import changed_files, is_gone, restored_by
from gnexp.store.run import Run
from gnexp.store.run_files import SMALL, TABLES


def repair_run(run: Run, finished: bool) -> list[str]:
    """Make a run's folder readable again; return a sentence per corrupt file.

    finished: nothing is to be trained, so that its large files are only read when another one is
    corrupt. Afterwards every file of the run can be read, or is absent and will be made anew:
    seeds whose result is gone are unfinished again, to be finished from the checkpoint where it
    is whole.
    """
    if finished and _small_files_are_whole(run):
        return []
    messages = [sentence] if (sentence := run.repair_digests()) else []
    with run.writing():
        lost = _gone(run, messages)
        states = _read_or_set_aside(run, "checkpoint.pt", lambda: load_states(run), messages) or {}
        for name, read in _documents(run).items():
            _read_or_set_aside(run, name, read, messages)
        if config := run.result().get("config") if not run.config() else None:
            run.write_config(config)
        corrupt_tables = [name for name in TABLES if _table(run, name, messages)]
        if corrupt_tables or lost or _lacks_table(run):
            _refill(run, states, messages)
        if _read_or_set_aside(run, "logits.npz", run.logits, messages) is None:
            _finish_again(run, states, messages)
    return messages


def is_readable(run: Run) -> bool:
    """Return whether the files with a run's progress can be read."""
    try:
        run.result(), run.statuses()
    except CorruptFile:
        return False
    return True


def _small_files_are_whole(run: Run) -> bool:
    try:
        for read in _documents(run).values():
            read()
    except CorruptFile:
        return False
    torn = any(run.whole_rows(name)[1] for name in TABLES) or _lacks_table(run)
    return not torn and not changed_files(run.folder, SMALL)


def _documents(run: Run) -> dict[str, Callable[[], Any]]:
    """Return how to read each small file that is no table; results first, as others follow them."""
    return {
        "result.json": run.result,
        "status.json": run.statuses,
        "plan.json": run.plan,
        "provenance.json": run.provenance,
        "config.yaml": run.config,
    }


def _lacks_table(run: Run) -> bool:
    return bool(run.result().get("seeds")) and not (run.folder / "metrics.csv").is_file()


def _gone(run: Run, messages: list[str]) -> list[str]:
    """Name the files that were written and are no longer there; return those that are tables."""
    names = [name for name in SMALL if is_gone(run.folder / name)]
    for name in names:
        messages.append(f"{run.folder / name} is gone: {restored_by(run.folder / name)}")
        if name not in TABLES:  # written anew where it is needed
            run.remove(name)
    return [name for name in names if name in TABLES]


def _read_or_set_aside(
    run: Run, name: str, read: Callable[[], Any], messages: list[str]
) -> Any | None:
    """Return what a file holds; set it aside and return None where it cannot be read."""
    try:
        return read()
    except CorruptFile as error:
        aside = run.set_aside(name)
        messages.append(f"{error}: kept as {aside}; {restored_by(run.folder / name)}")
        return None


def _table(run: Run, name: str, messages: list[str]) -> bool:
    """Keep a table's whole rows; return whether there were others."""
    rows, sentence = run.whole_rows(name)
    if not sentence:
        return False
    aside = run.set_aside(name)
    if rows:
        run.replace_rows(name, rows)
    messages.append(f"{sentence}: kept as {aside}; {restored_by(run.folder / name)}")
    return True


def _refill(run: Run, states: dict[int, State], messages: list[str]) -> None:
    for state in states.values():
        refill(run, state["rows"])
    rows = run.rows("metrics.csv")
    for seed, numbers in run.result().get("seeds", {}).items():
        have = {row["epoch"] for row in rows if row["seed"] == int(seed)}
        if (lacking := numbers.get("epochs", 0) - len(have)) > 0:
            messages.append(f"{run.folder / 'metrics.csv'}: seed {seed} lacks {lacking} epochs")


def _finish_again(run: Run, states: dict[int, State], messages: list[str]) -> None:
    """Let the seeds whose last weights are there be evaluated again; the others keep a result."""
    result = run.result()
    seeds = result.get("seeds", {})
    with_weights = {
        seed
        for seed, numbers in seeds.items()
        if numbers.get("status") == "complete"
        and progress_of(states.get(int(seed), {})) == (numbers.get("epochs"), 0)
    }
    if with_weights:
        kept = {seed: numbers for seed, numbers in seeds.items() if seed not in with_weights}
        run.write_result({**result, "seeds": kept})
    for seed in seeds.keys() - with_weights:
        messages.append(f"{run.folder / 'logits.npz'}: those of seed {seed} are gone")
