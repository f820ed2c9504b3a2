"""`gnexp report`: tables, figures and the page from what a study holds, or two side by side."""

import dataclasses
from pathlib import Path
from typing import Any

from gnexp.config.schema import Mistake, ReportConfig, ReportOptions
from gnexp.config.validation import report_problems
from gnexp.runner.loggers.export import export_all, viewing_lines
from gnexp.store.disk import disk_failure
from gnexp.store.study import Study, load_study


def report(config: ReportConfig) -> int:
    """Build the report of a study, or of two, and say where it is; returns the exit code."""
    config = dataclasses.replace(config, study=_as_typed(config.study))
    if found := report_problems(config):
        raise Mistake("\n".join(found))
    out = Path(config.out)
    if isinstance(config.study, list):
        print(make_comparison(out, config.study, config.reference_batch, config.report))
    else:
        print(make_report(out, config.study, config.reference_batch, config.report))
    names = config.study if isinstance(config.study, list) else [config.study]
    failed = [line for name in names for line in _logged(out / name, config.logger)]
    for line in failed:
        print(line)
    return 1 if failed else 0


def _as_typed(study: Any) -> Any:
    """Return names as text: where a list may stand, study=2026 arrives as a number."""
    if isinstance(study, list):
        return [str(_as_typed(name)) for name in study]
    return "" if study is None else str(study)


def _asked(options: ReportOptions) -> tuple[list[str], float]:
    """Return the kinds of figure files, and the accuracy, 0..1, beyond which a lead counts."""
    formats = options.format if isinstance(options.format, list) else [options.format]
    return formats, options.margin / 100


def _logged(folder: Path, logger: Any) -> list[str]:
    """Export a stored study to the loggers and say how to look at it; return what failed."""
    runs = [record.folder for record in load_study(folder).runs] if logger else []
    failed = export_all(runs, logger)
    for line in viewing_lines(folder, logger):
        print(line)
    return [f"failed: {what}: {why}" for what, why in failed]


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
    if unknown := study.unknown:
        print(
            f"unknown: whether {unknown} files were changed since they were written, having no"
            f" digest: see 'gnexp verify study={name}'"
        )
    return study


def make_report(
    out: Path, study: str, reference_batch: int, options: ReportOptions | None = None
) -> str:
    """Build a study's report and return what to print: its accuracies, the answer, where it lies.

    Raises Mistake for a study that is not there, a corrupt file, or a folder that refuses files.
    """
    from gnexp.report.fingerprint import changed_files
    from gnexp.report.study_report import build_report, plain_summary

    folder = out / study
    loaded = stored_study(str(out), study)
    formats, margin = _asked(options or ReportOptions())
    for name in changed_files(folder / "report"):
        print(f"damaged: {folder / 'report' / name} was changed since it was made: it is made anew")
    try:
        build_report(folder, reference_batch, formats, margin)
        found = plain_summary(loaded, reference_batch, margin)
    except (ValueError, OSError) as error:  # a corrupt file, or a report that cannot be written
        why = disk_failure(error, folder) or error
        raise Mistake(f"study={study}: no report: {why}") from error
    return f"{found}\nreport: {folder / 'report' / 'index.html'}"


def make_comparison(
    out: Path, names: list[str], reference_batch: int, options: ReportOptions
) -> str:
    """Build the report on two studies and return what to print: what it found, and where it lies.

    Raises Mistake for a study that is not there or empty, or a folder that refuses files.
    """
    from gnexp.report.comparison_report import build_comparison

    for name in names:
        stored_study(str(out), name)
    formats, margin = _asked(options)
    try:
        written, found = build_comparison(out, names, reference_batch, formats, margin)
    except (ValueError, OSError) as error:
        raise Mistake(f"study=[{','.join(names)}]: no report: {error}") from error
    return "\n".join([*found, f"report: {written['index.html']}"])
