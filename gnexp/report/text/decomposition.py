"""The sentences on how a fall of accuracy splits: by place, and between norm and optimizer."""

from collections.abc import Sequence

from gnexp.analysis.batch_vs_update_batch import PRECISE, RUNNING
from gnexp.analysis.decomposition import ENDS, Row
from gnexp.analysis.tables.table import estimate, percent

MANY = 6  # series beyond which one sentence each would be a table


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


def _points(row: Row, part: str, sign: int) -> str:
    mean, *ends = (sign * row[f"{part}_damage{end}"] + 0.0 for end in ENDS)  # no -0.00
    lo, hi = (percent(end, 2) for end in ends[::sign])
    return percent(mean, 2) + (f" [{lo}, {hi}]" if lo and hi else "")


def two_batches_sentences(rows: Sequence[Row]) -> list[str]:
    """Return one sentence per norm: how its fall at the smallest batch splits."""
    parts, seen = [], set()
    for row in rows:
        if row["statistics"] != RUNNING or row["series"] in seen:
            continue
        seen.add(row["series"])
        kinds = [r for r in rows if all(r[k] == row[k] for k in ("series", "batch"))]
        precise = next((r for r in kinds if r["statistics"] == PRECISE), None)
        beside = (
            f"; with population statistics {estimate(precise, 'norm_part')} and "
            f"{estimate(precise, 'optimizer_part')}"
            if precise
            else ""
        )
        chance = f", {row['n_at_chance']} counted at chance" if row["n_at_chance"] else ""
        single = ", so no interval" if row["n"] == 1 else ""
        parts.append(
            f"{row['series']}, batch {row['batch']} against {row['update_batch']}: "
            f"{estimate(row, 'fall')} points lost = {estimate(row, 'norm_part')} because the "
            f"norm sees {_images(row['batch'])} + {estimate(row, 'optimizer_part')} because the "
            f"optimizer does{beside} (n = {row['n']} shared seed{'s' * (row['n'] != 1)}{single}"
            f"{chance})."
        )
    return parts


def _images(batch: int) -> str:
    return "single images" if batch == 1 else f"{batch} images"
