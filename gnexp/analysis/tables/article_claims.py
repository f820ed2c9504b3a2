"""The table of the article's claims, each with the verdict of the study's own numbers."""

from collections.abc import Sequence

from gnexp.analysis.article_claims import COLUMNS, number_text
from gnexp.analysis.batch_vs_update_batch import TOGETHER
from gnexp.analysis.tables.table import Column, Row, Table, number, words


def article_claims_table(rows: Sequence[Row]) -> Table:
    """Return the table "article_claims": a row per claim, series and batch."""
    return Table(
        "article_claims",
        "Claims of the article",
        "What this study's own numbers say of the article's claims. Intervals are 95 %, "
        "simultaneous over the comparisons of a claim's family. Undecided: the interval leaves "
        "both open, which supports neither side. Diverged seeds count at chance where accuracies "
        f"are compared. A claim on batch sizes says '{TOGETHER}' where update_batch follows the "
        "batch size.",
        COLUMNS,
        [
            words("The article's claim", "claim"),
            words("Of", "of"),
            number("Batch", "batch"),
            words("Verdict", "verdict"),
            Column("Measured", _measured, False),
            words("n", "n"),
            number("Comparisons in its family", "family"),
            words("Note", "note"),
            words("Chapter of the article", "article"),
        ],
        rows,
        "The study holds no numbers that test a claim of the article.",
    )


def _measured(row: Row) -> str:
    if row["measured"]:
        return row["measured"]
    return f"{number_text(row['unit'], row['value'], row['lo'], row['hi'])} {row['unit']}".strip()
