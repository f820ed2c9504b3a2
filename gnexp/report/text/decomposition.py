"""The sentences on how a fall of accuracy splits: by place, and between norm and optimizer."""

from collections.abc import Sequence

from gnexp.analysis.batch_vs_update_batch import PRECISE, RUNNING
from gnexp.analysis.decomposition import Row
from gnexp.report.text.sentences import write

MANY = 6  # series beyond which one sentence each would be a table


def decomposition_sentences(rows: Sequence[Row]) -> list[str]:
    """Return, per series, how the accuracy lost at its smallest batch splits; rows of ACCURACY.

    A batch of 1 that stands apart is followed by the next batch size.
    """
    split: dict[str, list[Row]] = {}
    for row in rows:
        if row["n_shared"] and row["batch"] < row["reference_batch"]:
            split.setdefault(row["series"], []).append(row)
    shown = [row for here in split.values() for row in here[: 2 if here[0]["apart"] else 1]]
    return write("decomposition.j2", rows=shown if len(split) <= MANY else ())


def two_batches_sentences(rows: Sequence[Row]) -> list[str]:
    """Return one sentence per norm: how its fall at the smallest batch splits."""
    running = {row["series"]: row for row in reversed(rows) if row["statistics"] == RUNNING}
    precise = {(r["series"], r["batch"]): r for r in rows if r["statistics"] == PRECISE}
    shown = [(row, precise.get((name, row["batch"]))) for name, row in running.items()]
    return write("two_batches.j2", rows=shown[::-1])
