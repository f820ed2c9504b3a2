"""The table of two batch sizes apart: the parts of the fall, and the accuracies behind them."""

from collections.abc import Sequence

from gnexp.analysis.batch_vs_update_batch import PRECISE, RUNNING
from gnexp.analysis.tables.table import Column, Row, Table, estimated, key_columns, names

_STATISTICS = {RUNNING: "running", PRECISE: "population"}


def two_batches_table(rows: list[Row], key: Sequence[str]) -> Table:
    """Return the table "two_batches"; key: the columns that identify a cell."""
    return Table(
        "two_batches",
        "Two batch sizes apart",
        "What a small batch costs, in two parts. Of the norm: accuracy lost when only the "
        "statistics see fewer images, inside a fixed update batch. Of the optimizer: what is lost "
        "beyond, when the update too has only these images and the learning rate follows it; for "
        "BN this holds how the two act together. Paired over n seeds, 95 % t intervals, each on "
        "its own; negative: gained. Population: with statistics recomputed over training images, "
        "augmented as in training, since the running ones average over as many images but other "
        "spans of training. Norms that do not mix examples compute the same update at every batch: "
        "their part is rounding, "
        "grown by training. Accuracies are of the seeds that did not diverge; in the parts a "
        "diverged seed counts at chance.",
        [
            *(*key, *names("statistics n n_at_chance fall* fall_p norm_part* norm_part_p")),
            *names("optimizer_part* optimizer_part_p reference* reference_n fixed* fixed_n"),
            *names("equal* equal_n"),
        ],
        [
            *key_columns(key),
            Column("Statistics", lambda row: _STATISTICS[row["statistics"]], False),
            estimated("Accuracy, batch = update batch (%)", "reference"),
            estimated("batch inside it (%)", "fixed"),
            estimated("update = batch, too (%)", "equal"),
            estimated("Fall in all (points)", "fall"),
            estimated("of the norm", "norm_part"),
            estimated("of the optimizer", "optimizer_part"),
            Column("n", _counted),
        ],
        rows,
        "No norm was trained both with update_batch = batch and inside a fixed update_batch: "
        "gnexp train experiment=two_batches does.",
    )


def _counted(row: Row) -> str:
    lost = row["n_at_chance"]
    return f"{row['n']}, {lost} diverged" if lost else str(row["n"])
