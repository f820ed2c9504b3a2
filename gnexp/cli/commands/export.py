"""`gnexp export`: a study as one file to share."""

from collections import Counter
from pathlib import Path

from gnexp.cli.commands.report import stored_study
from gnexp.cli.commands.status import counts_text
from gnexp.config.schema import ExportConfig, UsageError
from gnexp.store.archive import SUFFIX, pack, unpack
from gnexp.store.export import Export, export_of
from gnexp.store.files import write_whole
from gnexp.store.status import seed_states
from gnexp.store.study import Study, load_study

FINAL = ("complete", "diverged", "infeasible")  # as they will stay


def export(config: ExportConfig) -> int:
    """Write OUT/NAME.zip, and print what it holds and lacks; returns the exit code."""
    study = stored_study(config.out, config.study)
    if study.is_zip:
        raise UsageError(f"study={config.study} is one file already: {study.folder}")
    path = study.folder.with_name(study.name + SUFFIX)
    _require_no_loss(path, study)
    made = export_of(study)
    data = pack({f"{study.name}/{name}": content for name, content in made.files.items()})
    try:
        if unpack(path, data) != (study.name, made.files):
            raise ValueError(f"{path} would not hold what was packed")
    except ValueError as error:  # before it replaces a zip that can be read
        raise UsageError(f"study={study.name} makes no zip that can be read: {error}") from error
    write_whole(path, data)
    print(f"{path}: {len(study.runs)} runs, {len(made.files)} files, {_size(len(data))}")
    for line in (*_unfinished(study), *_left_out(study, made)):
        print(line)
    return 0


def _require_no_loss(path: Path, study: Study) -> None:
    if not path.exists():
        return
    try:
        lost = _finished(load_study(path)) - _finished(study)
    except ValueError as error:
        raise UsageError(f"{path} is there, and no study's zip: move it away ({error})") from error
    if lost:
        run, seed = min(lost)
        raise UsageError(
            f"{path} holds results that {study.folder} does not, such as {run}, seed {seed}: move"
            " it away"
        )


def _finished(study: Study) -> set[tuple[str, str]]:
    return {(record.name, seed) for record in study.runs for seed in record.result.get("seeds", {})}


def _unfinished(study: Study) -> list[str]:
    states = Counter(seed.state for record in study.runs for seed in seed_states(record))
    open_states = Counter({state: n for state, n in states.items() if state not in FINAL})
    return [f"unfinished, stored as they are now: seeds {counts_text(open_states)}"] * bool(
        open_states
    )


def _left_out(study: Study, made: Export) -> list[str]:
    lines = []
    if made.weights:
        size = sum((study.folder / name).stat().st_size for name in made.weights)
        lines.append(
            f"left out: {len(made.weights)} files of weights and logits, {_size(size)}; no seed can"
            " be resumed or measured from the zip"
        )
    others = [name for name in made.others if name != "report"]
    if "report" in made.others:
        lines.append("left out: the report, which 'gnexp report' makes from the zip")
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if others[5:] else "")
        lines.append(f"left out, as no report reads them: {shown}")
    return lines


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
