"""`gnexp report`: tables, figures and the page from what a study holds, or two side by side."""

import shlex
from pathlib import Path

from gnexp.config.schema import ReportConfig, ReportOptions, UsageError, listed
from gnexp.runner.loggers import export_all, viewing_lines
from gnexp.store.archive import SUFFIX
from gnexp.store.disk import disk_failure
from gnexp.store.study import Study, folder_of, load_study, runs_of, study_path


def report(config: ReportConfig) -> int:
    """Build the report of a study, or of two, print its path; returns the exit code."""
    # Where a list may stand, study=2026 arrives as a number.
    names = [str(name) for name in listed(config.study)]
    out = Path(config.out)
    studies = [_loaded(config.out, name) for name in names]
    for study in studies if config.logger else ():
        require_folder(study.folder, "logger=")
    for name, study in zip(names, studies):
        _print_problems(study, name)
    if len(names) > 1:
        print(_comparison(studies, out, config.reference_batch, config.report))
    else:
        print(_report(studies[0], config.reference_batch, config.report))
    failed = []
    for study in studies:
        failed += export_all([record.folder for record in study.runs], config.logger)
        for line in viewing_lines(study.folder, config.logger):
            print(line)
    for what, why in failed:
        print(f"failed: {what}: {why}")
    return 1 if failed else 0


def _loaded(out: str, name: str) -> Study:
    try:
        return load_study(study_path(out, name))
    except ValueError as error:
        raise UsageError(str(error)) from error


def stored_study(out: str, name: str) -> Study:
    """Return a study by name and print its corrupt files; raises UsageError if there is none."""
    study = _loaded(out, name)
    _print_problems(study, name)
    return study


def _print_problems(study: Study, name: str) -> None:
    for path in study.unread:
        print(unread_line(path, study.folder))
    for sentence in study.corrupt_files:
        print(f"corrupt: {sentence}")
    if study.corrupt_files and not study.is_zip:
        print("the command that trained it repairs what it can, and trains no complete seed again")
    if unknown := study.unknown:
        print(
            f"unknown: whether {unknown} files were changed since they were written, having no"
            f" digest: see 'gnexp verify study={name}'"
        )


def unread_line(path: Path, folder: Path) -> str:
    """Return the sentence on a zip that is not read, since the study's folder is."""
    return f"{path} is not read, since {folder} holds runs; study={path} reads it"


def require_folder(path: Path, what: str) -> None:
    """Raise UsageError for a study that is a zip, into which nothing can be written."""
    if path.suffix == SUFFIX:
        command = ["python", "-m", "zipfile", "-e", str(path), str(folder_of(path).parent)]
        raise UsageError(
            f"{what} writes into the folders of runs, and {path} is one file: unpack it first with"
            f" {shlex.join(command)}"
        )


def make_report(
    out: Path, study: str, reference_batch: int, options: ReportOptions | None = None
) -> str:
    """Read a study, build its report; return what to print: accuracies, answer, where it lies."""
    return _report(stored_study(str(out), study), reference_batch, options or ReportOptions())


def _report(study: Study, reference_batch: int, options: ReportOptions) -> str:
    from gnexp.analysis.study_analysis import study_analysis
    from gnexp.report.fingerprint import changed_files
    from gnexp.report.study_report import build_report
    from gnexp.report.text.accuracy_matrix import plain_summary

    folder = study.report_folder
    if study.is_zip and runs_of(folder.parent):
        raise UsageError(
            f"study={study.name}: its report would replace that of {folder.parent}, which holds"
            " runs: move the zip to another folder, or name the other study"
        )
    for name in changed_files(folder):
        print(f"corrupt: {folder / name} was changed since it was made: it is made anew")
    try:
        analysis = study_analysis(study, reference_batch, options.margin / 100)
        build_report(analysis, listed(options.format))
        found = plain_summary(analysis)
    except (ValueError, OSError) as error:  # a corrupt file, or a report that cannot be written
        why = disk_failure(error, folder.parent) or error
        raise UsageError(f"study={study.name}: no report: {why}") from error
    return f"{found}\nreport: {folder / 'index.html'}"


def _comparison(
    studies: list[Study], out: Path, reference_batch: int, options: ReportOptions
) -> str:
    from gnexp.analysis.compare_studies import StudyComparison
    from gnexp.analysis.study_analysis import study_analysis
    from gnexp.report.comparison_report import build_comparison

    names = [study.name for study in studies]
    if len({*names}) < 2:
        raise UsageError(
            f"study=[{','.join(names)}]: both are named {names[0]}; rename one of the files"
        )
    try:
        sides = [study_analysis(study, reference_batch, options.margin / 100) for study in studies]
        written, found = build_comparison(StudyComparison(sides), out, listed(options.format))
    except (ValueError, OSError) as error:
        raise UsageError(f"study=[{','.join(names)}]: no report: {error}") from error
    return "\n".join([*found, f"report: {written['index.html']}"])
