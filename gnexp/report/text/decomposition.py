"""The sentences about accuracy lost in training and in evaluation."""

from collections.abc import Sequence

from gnexp.analysis.decomposition import MANY, Row, _points
from gnexp.analysis.tables.table import percent


def decomposition_sentences(rows: Sequence[Row]) -> list[str]:
    """Return, per series, how the accuracy lost at its smallest batch splits; rows of ACCURACY.

    A batch of 1 that stands apart is followed by the next batch size.
    """
    parts = []
    split = [row for row in rows if row["n_shared"] and row["batch"] < row["reference_batch"]]
    names = list(dict.fromkeys(row["series"] for row in split))
    for name in names if len(names) <= MANY else ():
        here = [row for row in split if row["series"] == name]
        for row in here[: 2 if here[0]["apart"] else 1]:
            n, total = row["n_shared"], row["total_damage"]
            sign, word = (1, "lost") if total >= 0 else (-1, "gained")
            apart = " (trained on single images)" if row["apart"] else ""
            chance = f", {row['n_at_chance']} counted at chance" if row["n_at_chance"] else ""
            single = ", so no interval" if n == 1 else ""
            parts.append(
                f"{name}, batch {row['batch']}{apart} against {row['reference_batch']}: "
                f"{percent(sign * total, 2)} points {word} = {_points(row, 'training', sign)} in "
                f"training + {_points(row, 'evaluation', sign)} in evaluation "
                f"(n = {n} shared seed{'s' * (n != 1)}{single}{chance})."
            )
    return parts
