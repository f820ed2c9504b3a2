"""`gnexp measure`: instruments on stored runs, without training again."""

import contextlib
from pathlib import Path

from gnexp.analysis.study_analysis import study_analysis
from gnexp.analysis.tables.table import to_csv, to_markdown
from gnexp.cli.commands.report import make_report, require_folder, stored_study
from gnexp.config.identity import restore
from gnexp.config.resolve import cost_run, resolve
from gnexp.config.schema import CostConfig, MeasureConfig, UsageError
from gnexp.config.unknown import unknown
from gnexp.config.unused import idle_problems
from gnexp.report.benchmark.memory import memory_table
from gnexp.runner.benchmark.memory import MOST, batch_column, memory_row, problems_of
from gnexp.runner.build import data
from gnexp.runner.instruments import INSTRUMENTS
from gnexp.runner.measure_stored import SHARED, measure_stored
from gnexp.runner.plan import output_folder
from gnexp.runner.preflight import corruption_problems
from gnexp.runner.repair import repair_run
from gnexp.runner.strange_code import strange_code, strangers_sentence
from gnexp.store.files import write_whole
from gnexp.store.run import Run
from gnexp.store.study import Study


def measure(config: MeasureConfig) -> int:
    """Measure stored runs of a study and refresh its report; the exit code."""
    data.forget()
    what = config.what if isinstance(config.what, list) else [config.what]
    if found := _problems(config, what):
        raise UsageError("\n".join(found))
    if what == ["cost"]:
        print(measure_cost(config.cost, config.device, output_folder(config.out, "cost")))
        return 0
    study = _finished_study(config)
    if "cost" in what:
        print(measure_cost(config.cost, config.device, output_folder(config.out, "cost")))
    trusted = _trusted(config, study)
    for record in study.runs:
        if record.corrupt_files:  # tables are about to be written to
            for sentence in repair_run(Run(record.folder), finished=False):
                print(f"repaired: {sentence}")
    # Trials and rates that were not chosen are in no table of these.
    failed = measure_stored(
        [record.folder for record in study_analysis(study).reported_runs if record.result],
        what,
        config.device,
        config.workers,
        trusted=tuple(trusted),
        shift=config.shift,
        batches=tuple(config.gradients_at or ()) if "gradients" in what else (),
        draws=config.gradients,
    )
    try:
        print(make_report(Path(config.out), config.study, config.reference_batch))
    except UsageError as error:  # what failed before is told too
        failed.append(("report", str(error)))
    for name, why in failed:
        print(f"failed: {name}: {why}")
    return 1 if failed else 0


def _finished_study(config: MeasureConfig) -> Study:
    study = stored_study(config.out, config.study)
    require_folder(study.folder, "gnexp measure")
    ended = {state["status"] for record in study.runs for state in record.statuses.values()}
    if "complete" not in ended and not any(record.corrupt_files for record in study.runs):
        raise UsageError(f"study={config.study} has no finished training to measure; train first")
    if found := idle_problems(config.workers, len(study.runs), "runs"):
        raise UsageError("\n".join(found))
    return study


def _trusted(config: MeasureConfig, study: Study) -> set[str]:
    """Print and return the code, not imported, that a stranger's runs call, if it may be called."""
    found: set[str] = set()
    for record in (each for each in study.runs if each.result):
        with contextlib.suppress(AttributeError, KeyError, TypeError):  # told when it is measured
            found |= {*strange_code(record.folder, restore(record.config))}
    if found and not config.trust:
        raise UsageError(f"study={config.study}: {strangers_sentence(found)}")
    for code in sorted(found):
        print(f"trust=true: code of this study is called: {code}", flush=True)
    return found


def _problems(config: MeasureConfig, what: list[str]) -> list[str]:
    found = []
    valid = (*SHARED, *INSTRUMENTS, "cost")
    for name in what:
        if name not in valid:
            found.append(unknown(f"what={name} is unknown", name, valid))
    if not what:
        found.append("what=[] measures nothing: name instruments, such as what=[shift,classes]")
    if config.gradients_at is None and "gradients" in what:
        found.append("gradients_at=null measures nothing: name batch sizes, such as [1,2,4,8]")
    if config.gradients == 0 and "gradients" in what:
        found.append("gradients=0 measures nothing: name a number of draws, such as 256")
    if not found and "shift" in what:
        found += corruption_problems(config.shift)
    if not found and "cost" in what:
        found += problems_of(config.cost)
    try:
        data.pick_device(config.device)
    except ValueError as error:
        found.append(str(error))
    return found


def measure_cost(cost: CostConfig, device: str, folder: Path) -> str:
    """Count (on CUDA: measure) and write what every norm costs; return what to print."""
    place = data.pick_device(device)
    rows = [memory_row(cost, resolve(cost_run(cost, norm)), place) for norm in cost.norms]
    title = f"{cost.model}, images of {cost.size}x{cost.size}: memory of one training update"
    columns = {batch: batch_column(batch) for batch in cost.batches}
    table = memory_table(rows, title, columns, cost.memory_gb, MOST, place.type == "cuda")
    write_whole(folder / "cost.csv", to_csv(table))
    write_whole(folder / "cost.md", to_markdown(table))
    lines = ["  ".join(f"{text:>18}" for text in texts) for texts in table.texts()]
    head = "  ".join(f"{column.header:>18}" for column in table.shown)
    return "\n".join([table.title, head, *lines, f"cost: {folder / 'cost.md'}"])
