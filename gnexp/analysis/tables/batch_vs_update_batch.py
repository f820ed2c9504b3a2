"""The table of two batch sizes apart: the parts of the fall, and the accuracies behind them."""

from collections.abc import Sequence

from gnexp.analysis.batch_vs_update_batch import ENDS, LEVELS, PARTS, PRECISE, RUNNING
from gnexp.analysis.tables.table import Column, Row, Table, estimate, key_columns

_STATISTICS = {RUNNING: "running", PRECISE: "population"}


def two_batches_table(rows: list[Row], key: Sequence[str]) -> Table:
    """Return the table "two_batches"; key: the columns that identify a cell."""
    columns = [*key, "statistics", "n", "n_at_chance"]
    for part in PARTS:
        columns += [f"{part}{end}" for end in ENDS] + [f"{part}_p"]
    columns += [f"{level}{end}" for level in LEVELS for end in (*ENDS, "_n")]
    shown = [
        *key_columns(key),
        Column("Statistics", lambda row: _STATISTICS[row["statistics"]], False),
        Column("Accuracy, batch = update batch (%)", estimate("reference")),
        Column("batch inside it (%)", estimate("fixed")),
        Column("update = batch, too (%)", estimate("equal")),
        Column("Fall in all (points)", estimate("fall")),
        Column("of the norm", estimate("norm_part")),
        Column("of the optimizer", estimate("optimizer_part")),
        Column("n", _counted),
    ]
    caption = (
        "What a small batch costs, in two parts. Of the norm: accuracy lost when only the "
        "statistics see fewer images, inside a fixed update batch. Of the optimizer: what is lost "
        "beyond, when the update too has only these images and the learning rate follows it; for "
        "BN this holds how the two act together. Paired over n seeds, 95 % t intervals, each on "
        "its own; negative: gained. Population: with statistics recomputed over training images, "
        "augmented as in training, since the running ones average over as many images but other "
        "spans of training. Norms that do not mix examples compute the same update at every batch: "
        "their part is rounding, "
        "grown by training. Accuracies are of the seeds that did not diverge; in the parts a "
        "diverged seed counts at chance."
    )
    empty = (
        "No norm was trained both with update_batch = batch and inside a fixed update_batch: "
        "gnexp train experiment=two_batches does."
    )
    return Table("two_batches", "Two batch sizes apart", caption, columns, shown, rows, empty)


def _counted(row: Row) -> str:
    lost = row["n_at_chance"]
    return f"{row['n']}, {lost} diverged" if lost else str(row["n"])
