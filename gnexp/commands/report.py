"""`gnexp report`: tables, figures and the page from what a study holds at this moment."""

from pathlib import Path

from gnexp.config import Mistake, ReportConfig, study_problems
from gnexp.study.store import Study, load_study


def report(config: ReportConfig) -> int:
    """Build the report of a study and say where it is; returns the exit code."""
    if found := study_problems(config):
        raise Mistake("\n".join(found))
    print(make_report(Path(config.out), config.study, config.reference_batch))
    return 0


def stored_study(out: str, name: str) -> Study:
    """Return a study by name; raises Mistake where there is none, or a file of it is corrupt."""
    try:
        return load_study(Path(out) / name)
    except ValueError as error:
        raise Mistake(str(error)) from error


def make_report(out: Path, study: str, reference_batch: int) -> str:
    """Build a study's report and return what to print: its accuracy table and where it lies."""
    from gnexp.study.report import build_report, plain_table

    folder = out / study
    loaded = stored_study(str(out), study)
    build_report(folder, reference_batch=reference_batch)
    return f"{plain_table(loaded)}\nreport: {folder / 'report' / 'index.html'}"
