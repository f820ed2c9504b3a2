"""The table of the article's claims, each with the verdict of the study's own numbers."""

from collections.abc import Sequence

from gnexp.analysis.article_claims import COLUMNS, number_text
from gnexp.analysis.batch_vs_update_batch import TOGETHER
from gnexp.analysis.tables.table import Column, Row, Table, get


def article_claims_table(rows: Sequence[Row]) -> Table:
    """Return the table "article_claims": a row per claim, series and batch."""
    shown = [
        Column("The article's claim", get("claim"), False),
        Column("Of", get("of"), False),
        Column("Batch", get("batch")),
        Column("Verdict", get("verdict"), False),
        Column("Measured", _measured, False),
        Column("n", lambda r: r["n"], False),
        Column("Comparisons in its family", get("family")),
        Column("Note", get("note"), False),
        Column("Chapter of the article", get("article"), False),
    ]
    caption = (
        "What this study's own numbers say of the article's claims. Intervals are 95 %, "
        "simultaneous over the comparisons of a claim's family. Undecided: the interval leaves "
        "both open, which supports neither side. Diverged seeds count at chance where accuracies "
        f"are compared. A claim on batch sizes says '{TOGETHER}' where update_batch follows the "
        "batch size."
    )
    empty = "The study holds no numbers that test a claim of the article."
    return Table("article_claims", "Claims of the article", caption, COLUMNS, shown, rows, empty)


def _measured(row: Row) -> str:
    if row["measured"]:
        return row["measured"]
    text = number_text(row["unit"], row["value"], row["lo"], row["hi"])
    return f"{text} {row['unit']}".strip()
