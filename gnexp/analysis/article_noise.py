"""The article's claims on gradient noise, compared with a study's fits and measurements."""

import math
from collections.abc import Sequence

from gnexp.analysis import statistics
from gnexp.analysis.article_rows import FAILS, HOLDS, SMALL, UNDECIDED, claim_row, series_name
from gnexp.analysis.gradient_noise import BLOCKS, SEPARATE_EXAMPLES, SHARED
from gnexp.analysis.inference import ALPHA
from gnexp.analysis.tables.table import Row

EXPONENT_TOLERANCE = 0.1


def exponent_claims(rows: Sequence[Row]) -> list[Row]:
    """Verdicts on noise against batch size at shared weights: the 1/B law, and the article."""
    epochs = [row["epoch"] for row in rows if row["weights"] == SHARED]
    law = "gradient noise goes as 1 / batch where images count independently: exponent -1"
    text = "noise of {kind}'s gradient goes as 1 / (values per statistic): exponent {expected}"
    asked = []
    for row in rows:
        if row["weights"] != SHARED or row["epoch"] != max(epochs) or not row["se"] > 0:
            continue
        example_only = row["norm"] in SEPARATE_EXAMPLES
        if row["parameters"] == "all" and example_only:
            asked.append((row, law, -1.0))
        if row["parameters"] in ("gamma", "beta") and row["norm"] != "none":
            expected = 0 if example_only else -1
            claim = text.format(kind=row["parameters"], expected=expected)
            asked.append((row, claim, float(expected)))
    found = []
    for row, claim, expected in asked:
        half = statistics.t_quantile(1 - ALPHA / (2 * len(asked)), row["dof"]) * row["se"]
        lo, hi = row["slope"] - half, row["slope"] + half
        verdict = _inside(lo, hi, expected - EXPONENT_TOLERANCE, expected + EXPONENT_TOLERANCE)
        n = f"{row['n_seeds']} seeds, {row['n_points']} points"
        more = {"unit": "", "value": row["slope"], "lo": lo, "hi": hi, "n": n}
        more |= {"family": len(asked), "note": f"within +-{EXPONENT_TOLERANCE:g}"}
        found.append(claim_row("Stable gradient flow", claim, series_name(row), verdict, **more))
    return found


def _inside(lo: float, hi: float, least: float, most: float) -> str:
    if least <= lo and hi <= most:
        return HOLDS
    return FAILS if hi < least or lo > most else UNDECIDED


def noisier_claims(rows: Sequence[Row]) -> list[Row]:
    """GN's noise over BN's at the smallest batch of both above 1, where BN is instance norm."""
    rows = [r for r in rows if r["norm"] in ("bn", "gn") and r["parameters"] in ("gamma", "beta")]
    rows = [r for r in rows if r["weights"] == SHARED or r["batch"] == r["at_batch"]]
    rows = [r for r in rows if 1 < r["at_batch"] < SMALL]
    shared = [r for r in rows if r["weights"] == SHARED]
    if {r["norm"] for r in shared} == {"bn", "gn"}:
        rows = shared  # one answer: of networks trained at the largest batch, as the exponents
    last = max((row["epoch"] for row in rows), default=None)
    cases = []
    for gn, bn in _pairs([row for row in rows if row["epoch"] == last]):
        if bn["noise"] > 0:
            cases += [(gn, bn, relative) for relative in (False, True)]
    found = []
    for gn, bn, relative in cases:
        upper, lower = (_level(row, relative, len(cases)) for row in (gn, bn))
        value = upper[0] / lower[0] if lower[0] > 0 else math.nan
        lo = upper[1] / lower[2] if lower[2] > 0 else math.nan
        hi = upper[2] / lower[1] if lower[1] > 0 else math.inf
        verdict = HOLDS if hi < 1 else FAILS if lo > 1 else UNDECIDED
        of_what = "relative to its signal" if relative else "in itself"
        claim = f"{gn['parameters']}'s gradient is less noisy than BN's, {of_what}: GN / BN"
        more = {"batch": gn["at_batch"], "unit": "", "value": value, "lo": lo, "hi": hi}
        more |= {"n": f"{gn['n']} and {bn['n']}", "family": len(cases)}
        note = f"{gn['weights']}, epoch {last}; the interval joins the ends of both, so it is wide"
        found.append(
            claim_row("Stable gradient flow", claim, series_name(gn), verdict, note=note, **more)
        )
    return found


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return each GN row at its series' smallest batch, with the one BN row of the same point."""
    bn: dict[str, list[Row]] = {}
    smallest: dict[str, Row] = {}
    for row in rows:
        if row["norm"] == "bn":
            bn.setdefault(_text(row, (*_NORM, *_NUMBERS)), []).append(row)
    for row in (r for r in rows if r["norm"] == "gn"):
        series = _text(row, (*_NUMBERS, *_SIZES, "tuned"))
        if len(bn.get(_text(row, (*_NORM, *_NUMBERS)), [])) == 1:
            kept = smallest.setdefault(series, row)
            smallest[series] = min(kept, row, key=lambda r: r["at_batch"])
    return [(gn, bn[_text(gn, (*_NORM, *_NUMBERS))][0]) for gn in smallest.values()]


def _text(row: Row, without: Sequence[str]) -> str:
    kept = [k for k in row if k not in without and not k.startswith("norm.")]
    return repr([(key, row[key]) for key in kept])


_NORM = ("norm", "groups", "channels_per_group", "tuned")
_SIZES = ("batch", "update_batch", "at_batch")
_NUMBERS = ("n", "k", "noise", "noise_lo", "noise_hi", "signal", "signal_lo", "signal_hi")
_NUMBERS += ("relative_noise", "noise_scale", "noise_scale_lo", "noise_scale_hi", "weight_norm")
_NUMBERS += ("weight_norm2_noise", "interval")


def _level(row: Row, relative: bool, family: int) -> tuple[float, float, float]:
    """Return noise (over signal) and its interval, widened for the family; at worst (0, inf)."""
    dof = row["n"] - 1 if row["n"] > 1 else min(BLOCKS, row["k"]) - 1
    intervals = 4 * family if relative else 2 * family  # of so many, all hold at 95 %
    wider = statistics.t_quantile(1 - ALPHA / (2 * intervals), dof)
    wider /= statistics.t_quantile(1 - ALPHA / 2, dof)

    def ends(name: str) -> tuple[float, float, float]:
        value, lo, hi = (row[f"{name}{end}"] for end in ("", "_lo", "_hi"))
        return value, value - wider * (value - lo), value + wider * (hi - value)

    noise, lo, hi = ends("noise")
    if not relative:
        return noise, max(lo, 0.0), hi
    signal, least, most = ends("signal")
    ratio = noise / signal if signal > 0 else math.nan
    return ratio, max(lo, 0.0) / most if most > 0 else 0.0, hi / least if least > 0 else math.inf
