"""The article's claims on shifted test images, held against what a study measured on them."""

import math
from collections.abc import Sequence

from gnexp.analysis.article_claims import (
    OF_THE_NORM,
    cell_keys,
    claim_row,
    decided,
    inside,
    series_name,
)
from gnexp.analysis.cells import norm_label
from gnexp.analysis.gradient_noise import SEPARATE_EXAMPLES
from gnexp.analysis.inference import (
    AHEAD,
    ALPHA,
    BEHIND,
    UNTESTED,
    Estimate,
    estimate,
    satterthwaite,
    simultaneous,
)
from gnexp.analysis.statistics import t_quantile
from gnexp.analysis.tables.table import Row, bounds, percent

SHIFT = "Robustness to distribution shift"
CONTRAST = "pure_contrast"  # lowered about each image's own mean
MARGIN = 0.01  # of what is called no change of the error


def shift_claims(rows: Sequence[Row]) -> list[Row]:
    """Norms without running statistics: whether the error rises less than BN's under corruption."""
    cases: list[tuple[Row, Row]] = []
    rows = [row for row in rows if row["n"] > 1 and not math.isnan(row["rise"])]
    for row in (row for row in rows if row["norm"] in SEPARATE_EXAMPLES[:-1]):
        keys = [k for k in cell_keys(row) if k not in OF_THE_NORM and not k.startswith("norm.")]
        same = [r for r in rows if r["norm"] == "bn" and all(r[k] == row[k] for k in keys)]
        if same:
            cases.append((row, same[0]))
    return [
        claim_row(
            SHIFT,
            "the error rises less than BN's on corrupted images: norm - BN",
            series_name(row),
            decided(d.verdict, BEHIND, AHEAD),  # a smaller rise is what is promised
            **{"batch": row["batch"], "value": d.difference},
            **{"lo": d.lo_simultaneous, "hi": d.hi_simultaneous, "family": d.family},
            n=f"{row['n']} and {bn['n']}",
            note=_corrupted(row, bn),
        )
        for (row, bn), d in zip(cases, simultaneous([_welch(*pair) for pair in cases]))
        if d.verdict != UNTESTED
    ]


def contrast_claims(rows: Sequence[Row]) -> list[Row]:
    """Norms of single examples: whether what holds for a layer's group holds for whole images.

    The contrast about an image's own mean is one affine map of each image.
    """
    name = f"rise_{CONTRAST}"
    own = [row for row in rows if row["norm"] in SEPARATE_EXAMPLES[:-1]]
    own = [r for r in own if r.get(f"n_{name}", 0) > 1 and r[f"{name}_hi"] > r[f"{name}_lo"]]
    return [_contrast(row, name, len(own)) for row in own]


def _contrast(row: Row, name: str, family: int) -> Row:
    rise, dof = row[name], row[f"n_{name}"] - 1
    wider = t_quantile(1 - ALPHA / (2 * family), dof)
    half = (row[f"{name}_hi"] - rise) * wider / t_quantile(1 - ALPHA / 2, dof)
    return claim_row(
        SHIFT,
        "the layer's invariance to one affine map carries over to images: rise of the error as "
        "their contrast is lowered about the image's own mean",
        series_name(row),
        inside(rise - half, rise + half, -MARGIN, MARGIN),
        **{"batch": row["batch"], "value": rise, "lo": rise - half, "hi": rise + half},
        n=str(dof + 1),
        family=family,
        note=f"holds within {100 * MARGIN:g} point; {_share(row, f'_{CONTRAST}')}",
    )


def _share(row: Row, name: str = "") -> str:
    share, lo, hi = (row[f"share_lost{name}{end}"] for end in ("", "_lo", "_hi"))
    if share != share:
        return "no accuracy above chance to lose"
    text = f"{percent(share)} % {bounds(lo, hi, percent)}".strip()
    return f"{text} of the accuracy above chance is lost"


def _corrupted(row: Row, bn: Row) -> str:
    text = f"accuracy on them {percent(row['corrupted'])} % and {percent(bn['corrupted'])} %"
    text += f"; {_share(row)}, under BN {_share(bn)}"
    if {row.get("tuned"), bn.get("tuned")} == {True, False}:
        text += f"; the rate of {norm_label(bn if row['tuned'] else row)} was not tuned"
    return text


def _welch(a: Row, b: Row) -> Estimate:
    """Return the difference of two mean rises, from their means, t intervals and n."""
    halves = [((row["rise_hi"] - row["rise_lo"]) / 2, row["n"] - 1) for row in (a, b)]
    parts = [((half / t_quantile(1 - ALPHA / 2, dof)) ** 2, dof) for half, dof in halves]
    return estimate(a["rise"] - b["rise"], *satterthwaite(parts))
