"""The article's claims on training, each with a verdict from the study's numbers.

A sentence about a difference holds or fails as its family of comparisons decides; one about a size
holds when its whole simultaneous interval lies inside the tolerance and fails when none of it does.
What the intervals leave open is undecided, which is no evidence of either.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gnexp.analysis import statistics
from gnexp.analysis.batch_vs_update_batch import optimizer_is_fixed, whose
from gnexp.analysis.cells import Cell, Series, norm_label
from gnexp.analysis.comparisons import between, untuned_note
from gnexp.analysis.gradient_noise import BLOCKS, SEPARATE_EXAMPLES, SHARED
from gnexp.analysis.inference import AHEAD, ALPHA, BEHIND, UNTESTED, simultaneous
from gnexp.analysis.samples import Sample
from gnexp.analysis.tables.table import Row, format_number

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
SMALL = 8  # BN is said to fall below this batch size
COLUMNS = ("article", "claim", "of", "batch", "measured", "unit", "value", "lo", "hi", "n")
COLUMNS += ("family", "verdict", "note")
POINTS = "points"
EXPONENT_TOLERANCE = 0.1


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


def accuracy_claims(
    flatness: Sequence[Row],
    compared: Sequence[Row],
    lines: Sequence[Series],
    known: Mapping[int, Sample],
    reference_batch: int,
) -> list[Row]:
    """Return a row per claim on accuracy, series and batch: COLUMNS.

    flatness, compared: rows of flatness and of norm against BN. value, lo, hi: fractions.
    """
    claims = [*_flat(flatness), *_bn_falls(flatness), *_gn_leads(compared)]
    return [*claims, *_between(lines, known, reference_batch)]


def _flat(rows: Sequence[Row]) -> list[Row]:
    """Verdicts on norms without batch statistics: equal accuracy at every batch size?"""
    series: dict[str, list[Row]] = {}
    for row in rows:
        if row["norm"] in SEPARATE_EXAMPLES[:-1]:
            series.setdefault(series_name(row), []).append(row)
    found = []
    for of, its in series.items():
        tested = [r for r in its if r["p_holm"] == r["p_holm"]]
        if not tested:
            continue
        verdicts = [r["verdict"] for r in tested]
        flat = verdicts.count(statistics.FLAT)
        moved = [r for r in tested if r["verdict"] in (statistics.LOWER, statistics.HIGHER)]
        verdict = FAILS if moved else HOLDS if flat == len(tested) else UNDECIDED
        worst = max(moved or tested, key=lambda r: abs(r["difference"]))
        note = f"flat within 1 point at {flat} of {len(tested)} batch sizes"
        if moved:
            note += "; not at " + ", ".join(str(r["batch"]) for r in moved)
        fixed = all(_same_updates(row) for row in tested)
        whom = whose(fixed, worst["update_batch"])
        claim = "accuracy does not depend on the batch size, "
        claim += f"{whom}: against {worst['reference_batch']}"
        found.append(claim_row("Independence from batch size", claim, of, verdict, note=note))
        found[-1] |= _of_flatness(worst)
    return found


def _bn_falls(rows: Sequence[Row]) -> list[Row]:
    verdict_of = {statistics.LOWER: HOLDS, statistics.HIGHER: FAILS, statistics.FLAT: FAILS}
    return [
        claim_row(
            "Independence from batch size",
            f"BN loses accuracy at a batch below {SMALL}, "
            f"{whose(_same_updates(row), row['update_batch'])}, against {row['reference_batch']}",
            series_name(row),
            verdict_of.get(row["verdict"], UNDECIDED),
            **_of_flatness(row),
        )
        for row in rows
        if row["norm"] == "bn" and row["batch"] < min(SMALL, row["reference_batch"])
        if row["p_holm"] == row["p_holm"]
    ]


def _same_updates(row: Row) -> bool:
    return row["update_batch"] == row["reference_update_batch"]


def _of_flatness(row: Row) -> Row:
    numbers = {"value": row["difference"], "lo": row["lo_simultaneous"]}
    numbers |= {"hi": row["hi_simultaneous"], "n": f"{row['n']} and {row['n_reference']}"}
    return {"batch": row["batch"], "family": row["family"], **numbers}


def _gn_leads(rows: Sequence[Row]) -> list[Row]:
    verdict_of = {AHEAD: HOLDS, BEHIND: FAILS}
    return [
        claim_row(
            "Independence from batch size",
            f"GN is the more accurate at a batch below {SMALL}, "
            f"{whose(_fixed_updates(row, rows), row['update_batch'])}: GN - BN",
            series_name(row),
            verdict_of.get(row["verdict"], UNDECIDED),
            batch=row["batch"],
            value=row["difference"],
            lo=row["lo_simultaneous"],
            hi=row["hi_simultaneous"],
            n=f"{row['n_a']} and {row['n_b']}",
            family=row["family"],
            note=row["note"],
        )
        for row in rows
        if row["norm"] == "gn" and row["batch"] < SMALL and row["verdict"] != UNTESTED
    ]


def _fixed_updates(row: Row, rows: Sequence[Row]) -> bool:
    """Return whether a norm and BN at one batch were trained in updates of a larger size, or share
    theirs with their series at other batch sizes."""
    same = [r for r in rows if series_name(r) == series_name(row)]
    return row["update_batch"] != row["batch"] or optimizer_is_fixed(same)


def _between(
    lines: Sequence[Series], known: Mapping[int, Sample], reference_batch: int
) -> list[Row]:
    """Is GN, which lies between LN and IN by construction, between them in accuracy too?"""

    def rest(line: Series) -> list[tuple[str, Any]]:
        own = ("norm", "groups", "channels_per_group", "tuned")
        return sorted((k, str(v)) for k, v in line.key.items() if k not in own)

    cases: list[tuple[Series, Cell, Cell, Cell]] = []
    for gn in (line for line in lines if line.norm == "gn"):
        ends = [
            next((o for o in lines if o.norm == n and rest(o) == rest(gn)), None)
            for n in ("ln", "in")
        ]
        here = [_at(line, reference_batch) for line in (gn, *ends) if line]
        if len(here) == 3 and all(here):
            cases.append((gn, *here))
    differences = [between(cell, end, known) for _, cell, *ends in cases for end in ends]
    adjusted = simultaneous(differences)
    found = []
    for index, (line, cell, ln, instance) in enumerate(cases):
        pair = adjusted[2 * index : 2 * index + 2]
        if UNTESTED in (pair[0].verdict, pair[1].verdict):
            continue
        decided = {a.verdict for a in pair}
        both = decided <= {AHEAD, BEHIND}
        verdict = (HOLDS if len(decided) == 2 else FAILS) if both else UNDECIDED
        to = [
            f"{name} {number_text(POINTS, d.difference, a.lo, a.hi)}"
            for name, d, a in zip(("- LN", "- IN"), differences[2 * index :], pair)
        ]
        claim = "GN lies between LN and IN, here in accuracy"
        measured = f"{', '.join(f'{line.label} {text}' for text in to)} points"
        n = " and ".join(str(len(c.scored)) for c in (cell, ln, instance))
        more = {"batch": reference_batch, "n": n, "family": pair[0].family}
        more["note"] = untuned_note(cell, ln, instance)
        found.append(
            claim_row("A unified view", claim, line.label, verdict, measured=measured, **more)
        )
    return found


def _at(line: Series, batch: int) -> Cell | None:
    return next((c for c in line.cells if c.key["batch"] == batch and len(c.scored) > 1), None)


def number_text(unit: str, value: float, lo: float, hi: float) -> str:
    """Return 'value [lo, hi]' in the unit, fractions as points."""

    def cut(number: float) -> str:
        if math.isinf(number):
            return "inf"
        return f"{100 * number:.1f}" if unit == POINTS else f"{number:.3g}"

    shown = [cut(number) if number == number else "?" for number in (value, lo, hi)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def tally(rows: Iterable[Row], of: Callable[[Row], str]) -> dict[str, int]:
    """Return how many rows there are of each verdict, in the order holds, fails, undecided."""
    found: dict[str, int] = {}
    for row in rows:
        found[of(row)] = found.get(of(row), 0) + 1
    order = [HOLDS, FAILS, UNDECIDED]
    return dict(sorted(found.items(), key=lambda i: order.index(i[0]) if i[0] in order else 9))


def exponent_claims(rows: Sequence[Row]) -> list[Row]:
    """Return verdicts on noise against batch at shared weights: the 1/B law, and the article."""
    epochs = [row["epoch"] for row in rows if row["weights"] == SHARED]
    law = "gradient noise goes as 1 / batch where images count independently: exponent -1"
    verdict_of = (
        "noise of {kind}'s gradient goes as 1 / (values per statistic): exponent {expected}"
    )
    asked = []
    for row in rows:
        if row["weights"] != SHARED or row["epoch"] != max(epochs) or not row["se"] > 0:
            continue
        alone = row["norm"] in SEPARATE_EXAMPLES
        if row["parameters"] == "all" and alone:
            asked.append((row, law, -1.0))
        if row["parameters"] in ("gamma", "beta") and row["norm"] != "none":
            expected = 0 if alone else -1
            claim = verdict_of.format(kind=row["parameters"], expected=expected)
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
