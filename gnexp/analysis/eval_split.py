"""The split that a study's accuracies are measured on, test or validation, and its words."""

import dataclasses
import re

from gnexp.analysis.cells import is_trial
from gnexp.analysis.tables.table import Table
from gnexp.store.study import Study

TEST, VALIDATION = "test", "validation"
_OF_IMAGES = re.compile(r"\b[Tt]est(?=\s(?:accurac|batch|image|loss|set\b))")  # no t test


def split_of(study: Study) -> str:
    """Return what the accuracies that a study reports are of, TEST or VALIDATION images.

    VALIDATION where every run holds images out of its training set: then those are reported.
    """
    return VALIDATION if study.runs and all(map(is_trial, study.runs)) else TEST


def for_split(text: str, on: str) -> str:
    """Return a text about test images as it reads of images `on`."""
    if on == TEST:
        return text
    return _OF_IMAGES.sub(lambda found: on.capitalize() if found[0] == "Test" else on, text)


def table_for_split(table: Table, on: str) -> Table:
    """Return a table whose text names the split; columns and rows are unchanged."""
    if on == TEST:
        return table
    shown = [
        dataclasses.replace(
            column,
            header=for_split(column.header, on),
            text=lambda row, text=column.text: for_split(text(row), on),
        )
        for column in table.shown
    ]
    parts = {name: for_split(getattr(table, name), on) for name in ("title", "caption", "empty")}
    return dataclasses.replace(table, shown=shown, **parts)
