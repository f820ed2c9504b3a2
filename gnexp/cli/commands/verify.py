"""`gnexp verify`: whether the files of a study are those that were written."""

from pathlib import Path

from gnexp.cli.commands.report import require_folder, unread_line
from gnexp.config.schema import UsageError, VerifyConfig
from gnexp.report import fingerprint
from gnexp.store.archive import SUFFIX
from gnexp.store.digests import Writer, stored_digests
from gnexp.store.files import CorruptFile
from gnexp.store.integrity import changed_files, restored_by, without_digest
from gnexp.store.run import exclusive
from gnexp.store.study import folder_of, load_study, record_of, runs_of, study_path, zips_of


def verify(config: VerifyConfig) -> int:
    """Name every file of a study that was changed or is gone; return 1 if there is one, else 0."""
    folder = study_path(config.out, config.study)
    try:
        if not (runs := runs_of(folder)):
            study = load_study(folder)
            folder, runs = study.folder, runs_of(study.folder)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if config.record:
        require_folder(folder, "record=true")
    for path in zips_of(folder) if folder.suffix != SUFFIX else []:
        print(unread_line(path, folder))
    sentences = {folder: _sentences(folder, [])}
    sentences |= {run.folder: _sentences(run.folder, record_of(run).corrupt_files) for run in runs}
    for sentence in (text for texts in sentences.values() for text in texts):
        print(sentence)
    report = folder_of(folder) / "report"
    others = folder.suffix == SUFFIX and runs_of(report.parent)  # the report is of a folder's runs
    changed = fingerprint.changed_files(report) if report.is_dir() and not others else []
    for name in changed:
        print(f"{report / name} was changed since it was made: 'gnexp report' makes it anew")
    if config.record:
        _record([each for each, texts in sentences.items() if not texts])
    count = sum(map(len, sentences.values())) + len(changed)
    print(_closing(config.study, list(sentences), count))
    return 1 if count else 0


def _sentences(folder: Path, corrupt_files: list[str]) -> list[str]:
    changed = changed_files(folder)
    parts = [f"{text}: {restored_by(folder / name)}" for name, text in changed.items()]
    return parts + [text for text in corrupt_files if text not in changed.values()]


def _record(folders: list[Path]) -> None:
    """Give files without a digest the one that they have now; a digest that stands is kept."""
    try:
        for folder in folders:
            if names := without_digest(folder):
                with exclusive(folder):
                    writer = Writer(folder)
                    for name in names:
                        writer.record(name)
                    writer.close()
                print(f"{folder}: recorded as they are now: {', '.join(names)}")
    except OSError as error:
        raise UsageError(f"record=true: {error}") from error


def _closing(study: str, folders: list[Path], count: int) -> str:
    whole = unknown = 0
    for folder in folders:
        unknown += len(without_digest(folder))
        try:
            whole += len(stored_digests(folder))
        except CorruptFile:
            continue
    text = f"{study}: {len(folders) - 1} runs, {whole} files with a digest"
    text += f", {count} not as they were written" if count else ", all as they were written"
    if unknown:
        text += f"; {unknown} without one, which cannot be verified: record=true stores what they"
        text += " are now"
    return text
