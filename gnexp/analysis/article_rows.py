"""The rows of the article's claims: their columns, and how a series is called in them."""

from typing import Any

from gnexp.analysis.cells import norm_label
from gnexp.analysis.tables.table import Row, format_number

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
SMALL = 8  # BN is said to fall below this batch size
COLUMNS = ("article", "claim", "of", "batch", "measured", "unit", "value", "lo", "hi", "n")
COLUMNS += ("family", "verdict", "note")
POINTS = "points"


def claim_row(article: str, claim: str, of: str, verdict: str, **more: Any) -> Row:
    """Return a row of COLUMNS; what is not given is None, the unit points."""
    row = dict.fromkeys(COLUMNS) | {"article": article, "claim": claim, "of": of, "note": ""}
    return row | {"verdict": verdict, "unit": POINTS, **more}


def series_name(row: Row) -> str:
    """Return the norm, and every other setting in which series may differ."""
    hidden = ("norm", "groups", "channels_per_group", "batch", "update_batch")
    keys = []
    for key, value in row.items():
        if key in ("epoch", "reference_batch", "series", "n", "weights", "statistics"):
            break
        if key not in hidden and value is not None:
            keys.append(f"{key.removeprefix('norm.')}={format_number(value)}")
    if row.get("update_batch") not in (None, row.get("batch")):
        keys.append(f"update {row['update_batch']}")
    return ", ".join([norm_label(row), *keys])
