"""`gnexp report`: tables, figures and the page from what a study holds at this moment."""

from pathlib import Path

from gnexp.config import Mistake, ReportConfig
from gnexp.rules import count_problems, study_problems
from gnexp.study.store import Study, load_study


def report(config: ReportConfig) -> int:
    """Build the report of a study and say where it is; returns the exit code."""
    found = study_problems(config) + count_problems({"reference_batch": config.reference_batch})
    if found:
        raise Mistake("\n".join(found))
    print(make_report(Path(config.out), config.study, config.reference_batch))
    return 0


def stored_study(out: str, name: str) -> Study:
    """Return a study by name, and say what of it is damaged; raises Mistake where there is none."""
    try:
        study = load_study(Path(out) / name)
    except ValueError as error:
        raise Mistake(str(error)) from error
    for sentence in study.damage:
        print(f"damaged: {sentence}")
    if study.damage:
        print("the command that trained it mends what it can, and trains nothing whole again")
    return study


def make_report(out: Path, study: str, reference_batch: int) -> str:
    """Build a study's report and return what to print: its accuracy table and where it lies.

    Raises Mistake for a study that is not there, a corrupt file, or a folder that refuses files.
    """
    from gnexp.study.report import build_report, plain_table

    folder = out / study
    loaded = stored_study(str(out), study)
    try:
        build_report(folder, reference_batch=reference_batch)
        table = plain_table(loaded)
    except (ValueError, OSError) as error:  # a corrupt file, or a report that cannot be written
        raise Mistake(f"study={study}: no report: {error}") from error
    return f"{table}\nreport: {folder / 'report' / 'index.html'}"
