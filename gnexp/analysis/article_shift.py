"""The article's claims on shifted test images, held against what a study measured on them."""

import math
from collections.abc import Sequence

from gnexp.analysis import statistics
from gnexp.analysis.article_claims import FAILS, HOLDS, UNDECIDED, claim_row, series_name
from gnexp.analysis.cells import norm_label
from gnexp.analysis.gradient_noise import SEPARATE_EXAMPLES
from gnexp.analysis.inference import (
    AHEAD,
    ALPHA,
    BEHIND,
    UNTESTED,
    Estimate,
    estimate,
    simultaneous,
)
from gnexp.analysis.tables.table import Row, percent

CONTRAST = "pure_contrast"  # lowered about each image's own mean
MARGIN = 0.01  # of what is called no change of the error


def shift_claims(rows: Sequence[Row]) -> list[Row]:
    """Norms without running statistics: whether the error rises less than BN's under corruption."""
    own = ("norm", "groups", "channels_per_group")
    key = [k for k in (rows[0] if rows else ()) if k not in own]
    key = key[: key.index("n")] if "n" in key else []
    cases: list[tuple[Row, Row, Estimate]] = []
    for row in (r for r in rows if r["norm"] in SEPARATE_EXAMPLES[:-1]):
        same = [r for r in rows if r["norm"] == "bn"]
        keys = [k for k in key if not k.startswith("norm.") and k != "tuned"]
        same = [r for r in same if all(r[k] == row[k] for k in keys) and r["n"] > 1]
        if same and row["n"] > 1:
            cases.append((row, same[0], _welch(row, same[0])))
    verdicts = {BEHIND: HOLDS, AHEAD: FAILS}  # a smaller rise is what the article promises
    return [
        claim_row(
            "Robustness to distribution shift",
            "the error rises less than BN's on corrupted images: norm - BN",
            series_name(row),
            verdicts.get(adjusted.verdict, UNDECIDED),
            batch=row["batch"],
            value=difference.difference,
            lo=adjusted.lo,
            hi=adjusted.hi,
            n=f"{row['n']} and {bn['n']}",
            family=adjusted.family,
            note=_corrupted(row, bn),
        )
        for (row, bn, difference), adjusted in zip(cases, simultaneous([d for *_, d in cases]))
        if adjusted.verdict != UNTESTED
    ]


def contrast_claims(rows: Sequence[Row]) -> list[Row]:
    """Norms of single examples: whether what holds for a layer's group holds for whole images.

    The contrast about an image's own mean is one affine map of each image.
    """
    rise, shown = f"rise_{CONTRAST}", []
    for row in (r for r in rows if r["norm"] in SEPARATE_EXAMPLES[:-1]):
        if row.get(f"n_{rise}", 0) > 1 and row[f"{rise}_hi"] > row[f"{rise}_lo"]:
            shown.append(row)
    found = []
    for row in shown:
        dof = row[f"n_{rise}"] - 1
        wider = statistics.t_quantile(1 - ALPHA / (2 * len(shown)), dof)
        half = (row[f"{rise}_hi"] - row[rise]) * wider / statistics.t_quantile(1 - ALPHA / 2, dof)
        lo, hi = row[rise] - half, row[rise] + half
        inside = lo >= -MARGIN and hi <= MARGIN
        verdict = HOLDS if inside else FAILS if lo > MARGIN or hi < -MARGIN else UNDECIDED
        note = f"holds within {100 * MARGIN:g} point; {_share(row, CONTRAST)}"
        claim = "the layer's invariance to one affine map carries over to images: rise of the error"
        claim += " as their contrast is lowered about the image's own mean"
        more = {"batch": row["batch"], "value": row[rise], "lo": lo, "hi": hi}
        more |= {"n": str(row[f"n_{rise}"]), "family": len(shown), "note": note}
        of = series_name(row)
        found.append(claim_row("Robustness to distribution shift", claim, of, verdict, **more))
    return found


def _share(row: Row, name: str = "") -> str:
    column = f"share_lost_{name}" if name else "share_lost"
    share, lo, hi = (row[f"{column}{end}"] for end in ("", "_lo", "_hi"))
    if share != share:
        return "no accuracy above chance to lose"
    bounds = f" [{percent(lo, 1)}, {percent(hi, 1)}]" if lo == lo else ""
    return f"{percent(share, 1)} %{bounds} of the accuracy above chance is lost"


def _corrupted(row: Row, bn: Row) -> str:
    text = f"accuracy on them {percent(row['corrupted'])} % and {percent(bn['corrupted'])} %"
    text += f"; {_share(row)}, under BN {_share(bn)}"
    if {row.get("tuned"), bn.get("tuned")} == {True, False}:
        text += f"; the rate of {norm_label(bn if row['tuned'] else row)} was not tuned"
    return text


def _welch(a: Row, b: Row) -> Estimate:
    """Return the difference of two mean rises, from their means, t intervals and n."""
    squares = []
    for row in (a, b):
        half = (row["rise_hi"] - row["rise_lo"]) / 2
        squares.append((half / statistics.t_quantile(1 - ALPHA / 2, row["n"] - 1)) ** 2)
    total = sum(squares)
    parts = sum(square**2 / (row["n"] - 1) for square, row in zip(squares, (a, b)))
    dof = total**2 / parts if parts else math.nan
    return estimate(a["rise"] - b["rise"], math.sqrt(total), dof)
