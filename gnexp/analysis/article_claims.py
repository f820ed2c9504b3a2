"""The article's claims on training, each with a verdict from the study's numbers.

A sentence about a difference holds or fails as its family of comparisons decides; one about a size
holds when its whole simultaneous interval lies inside the tolerance and fails when none of it does.
What the intervals leave open is undecided, which is no evidence of either.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from gnexp.analysis.batch_vs_update_batch import optimizer_is_fixed, whose
from gnexp.analysis.cells import Cell, Series, norm_label
from gnexp.analysis.comparisons import between, untuned_note
from gnexp.analysis.gradient_noise import BLOCKS, SEPARATE_EXAMPLES, SHARED
from gnexp.analysis.inference import AHEAD, ALPHA, BEHIND, UNTESTED, Difference, simultaneous
from gnexp.analysis.samples import Sample
from gnexp.analysis.statistics import FLAT, HIGHER, LOWER, t_quantile
from gnexp.analysis.tables.table import Row, format_number

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
SMALL = 8  # BN is said to fall below this batch size
COLUMNS = ("article", "claim", "of", "batch", "measured", "unit", "value", "lo", "hi", "n")
COLUMNS += ("family", "verdict", "note")
POINTS = "points"
EXPONENT_TOLERANCE = 0.1
INDEPENDENCE, FLOW = "Independence from batch size", "Stable gradient flow"
OF_THE_NORM = ("norm", "groups", "channels_per_group", "tuned")
_SIZES = ("batch", "update_batch")
_AFTER_KEY = ("epoch", "reference_batch", "series", "n", "weights", "statistics")


def claim_row(article: str, claim: str, of: str, verdict: str, **more: Any) -> Row:
    """Return a row of COLUMNS; what is not given is None, the unit points."""
    row = dict.fromkeys(COLUMNS) | {"article": article, "claim": claim, "of": of, "note": ""}
    return row | {"verdict": verdict, "unit": POINTS, **more}


def cell_keys(row: Row) -> list[str]:
    """Return the columns of a row that identify its cell."""
    return [*takewhile(lambda column: column not in _AFTER_KEY, row)]


def series_name(row: Row) -> str:
    """Return the norm, and every other setting in which series may differ."""
    keys = [k for k in cell_keys(row) if k not in (*OF_THE_NORM[:3], *_SIZES)]
    texts = [
        f"{k.removeprefix('norm.')}={format_number(row[k])}" for k in keys if row[k] is not None
    ]
    if row.get("update_batch") not in (None, row.get("batch")):
        texts.append(f"update {row['update_batch']}")
    return ", ".join([norm_label(row), *texts])


def decided(verdict: str, holds: str, *fails: str) -> str:
    """Return what a comparison's verdict says of a claim."""
    return HOLDS if verdict == holds else FAILS if verdict in fails else UNDECIDED


def inside(lo: float, hi: float, least: float, most: float) -> str:
    """Return what an interval says of the claim that a number lies between least and most."""
    if least <= lo and hi <= most:
        return HOLDS
    return FAILS if hi < least or lo > most else UNDECIDED


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
    tested = [row for row in flatness if not math.isnan(row["p_holm"])]
    separate = [row for row in tested if row["norm"] in SEPARATE_EXAMPLES[:-1]]
    return [
        *(_flat(name, rows) for name, rows in _by_series(separate).items()),
        *(
            _bn_falls(row)
            for row in tested
            if row["norm"] == "bn" and row["batch"] < min(SMALL, reference_batch)
        ),
        *_gn_leads(compared),
        *_between(lines, known, reference_batch),
    ]


def _flat(name: str, tested: Sequence[Row]) -> Row:
    """Verdict on a norm without batch statistics: equal accuracy at every batch size?"""
    moved = [row for row in tested if row["verdict"] in (LOWER, HIGHER)]
    flat = sum(row["verdict"] == FLAT for row in tested)
    verdict = FAILS if moved else HOLDS if flat == len(tested) else UNDECIDED
    worst = max(moved or tested, key=lambda row: abs(row["difference"]))
    whom = whose(all(map(_same_updates, tested)), worst["update_batch"])
    note = f"flat within 1 point at {flat} of {len(tested)} batch sizes"
    if moved:
        note += "; not at " + ", ".join(str(row["batch"]) for row in moved)
    claim = f"accuracy does not depend on the batch size, {whom}: against "
    claim += str(worst["reference_batch"])
    return claim_row(INDEPENDENCE, claim, name, verdict, note=note, **_of_flatness(worst))


def _bn_falls(row: Row) -> Row:
    whom = whose(_same_updates(row), row["update_batch"])
    return claim_row(
        INDEPENDENCE,
        f"BN loses accuracy at a batch below {SMALL}, {whom}, against {row['reference_batch']}",
        series_name(row),
        decided(row["verdict"], LOWER, HIGHER, FLAT),
        **_of_flatness(row),
    )


def _same_updates(row: Row) -> bool:
    return row["update_batch"] == row["reference_update_batch"]


def _of_flatness(row: Row) -> Row:
    return {**_simultaneous(row), "n": f"{row['n']} and {row['n_reference']}"}


def _simultaneous(row: Row) -> Row:
    lo, hi = row["lo_simultaneous"], row["hi_simultaneous"]
    numbers = {"value": row["difference"], "lo": lo, "hi": hi}
    return {"batch": row["batch"], "family": row["family"], **numbers}


def _gn_leads(rows: Sequence[Row]) -> list[Row]:
    of_series = _by_series(rows)
    return [
        claim_row(
            INDEPENDENCE,
            f"GN is the more accurate at a batch below {SMALL}, {_behind(row, of_series)}: GN - BN",
            series_name(row),
            decided(row["verdict"], AHEAD, BEHIND),
            **_simultaneous(row),
            n=f"{row['n_a']} and {row['n_b']}",
            note=row["note"],
        )
        for row in rows
        if row["norm"] == "gn" and row["batch"] < SMALL and row["verdict"] != UNTESTED
    ]


def _by_series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(series_name(row), []).append(row)
    return found


def _behind(row: Row, of_series: Mapping[str, Sequence[Row]]) -> str:
    """Return who is behind a difference between two norms at one batch size.

    The norm alone where both were trained in updates of a larger size, or share theirs with their
    series at other batch sizes.
    """
    same = of_series[series_name(row)]
    fixed = row["update_batch"] != row["batch"] or optimizer_is_fixed(same)
    return whose(fixed, row["update_batch"])


def _between(
    lines: Sequence[Series], known: Mapping[int, Sample], reference_batch: int
) -> list[Row]:
    """Is GN, which lies between LN and IN by construction, between them in accuracy too?"""

    def rest(line: Series) -> list[tuple[str, str]]:
        return sorted((k, str(v)) for k, v in line.key.items() if k not in OF_THE_NORM)

    cases: list[tuple[Series, Cell, Cell, Cell]] = []
    for gn in (line for line in lines if line.norm == "gn"):
        same = [line for line in lines if rest(line) == rest(gn)]
        ends = [next((o for o in same if o.norm == norm), None) for norm in ("ln", "in")]
        here = [_at(line, reference_batch) for line in (gn, *ends) if line]
        if len(here) == 3 and all(here):
            cases.append((gn, *here))
    found = simultaneous([between(c, end, known) for _, c, *ends in cases for end in ends])
    return [
        _lies_between(line, cells, pair, reference_batch)
        for (line, *cells), *pair in zip(cases, found[::2], found[1::2])
        if UNTESTED not in {one.verdict for one in pair}
    ]


def _at(line: Series, batch: int) -> Cell | None:
    return next((c for c in line.cells if c.key["batch"] == batch and len(c.scored) > 1), None)


def _lies_between(
    line: Series, cells: Sequence[Cell], pair: Sequence[Difference], batch: int
) -> Row:
    sides = {one.verdict for one in pair}
    to = [
        f"{line.label} - {name} "
        + number_text(POINTS, d.difference, d.lo_simultaneous, d.hi_simultaneous)
        for name, d in zip(("LN", "IN"), pair)
    ]
    return claim_row(
        "A unified view",
        "GN lies between LN and IN, here in accuracy",
        line.label,
        (HOLDS if len(sides) == 2 else FAILS) if sides <= {AHEAD, BEHIND} else UNDECIDED,
        measured=f"{', '.join(to)} points",
        batch=batch,
        n=" and ".join(str(len(cell.scored)) for cell in cells),
        family=pair[0].family,
        note=untuned_note(*cells),
    )


def number_text(unit: str, value: float, lo: float, hi: float) -> str:
    """Return 'value [lo, hi]' in the unit, fractions as points."""

    def cut(number: float) -> str:
        if not math.isfinite(number):
            return "?" if math.isnan(number) else "inf"
        return f"{100 * number:.1f}" if unit == POINTS else f"{number:.3g}"

    return f"{cut(value)} [{cut(lo)}, {cut(hi)}]"


def tally(rows: Iterable[Row], of: Callable[[Row], str]) -> dict[str, int]:
    """Return how many rows there are of each verdict, in the order holds, fails, undecided."""
    order = [HOLDS, FAILS, UNDECIDED]
    found = Counter(map(of, rows))
    return dict(sorted(found.items(), key=lambda i: order.index(i[0]) if i[0] in order else 9))


def exponent_claims(rows: Sequence[Row]) -> list[Row]:
    """Return verdicts on noise against batch at shared weights: the 1/B law, and the article."""
    shared = [row for row in rows if row["weights"] == SHARED]
    last = max((row["epoch"] for row in shared), default=None)
    asked = []
    for row in (row for row in shared if row["epoch"] == last and row["se"] > 0):
        alone, kind = row["norm"] in SEPARATE_EXAMPLES, row["parameters"]
        if kind == "all" and alone:
            law = "gradient noise goes as 1 / batch where images count independently: exponent -1"
            asked.append((row, law, -1))
        if kind in ("gamma", "beta") and row["norm"] != "none":
            law = f"noise of {kind}'s gradient goes as 1 / (values per statistic): exponent"
            asked.append((row, f"{law} {0 if alone else -1}", 0 if alone else -1))
    return [_exponent(row, claim, expected, len(asked)) for row, claim, expected in asked]


def _exponent(row: Row, claim: str, expected: int, family: int) -> Row:
    half = t_quantile(1 - ALPHA / (2 * family), row["dof"]) * row["se"]
    lo, hi = row["slope"] - half, row["slope"] + half
    return claim_row(
        FLOW,
        claim,
        series_name(row),
        inside(lo, hi, expected - EXPONENT_TOLERANCE, expected + EXPONENT_TOLERANCE),
        **{"unit": "", "value": row["slope"], "lo": lo, "hi": hi},
        n=f"{row['n_seeds']} seeds, {row['n_points']} points",
        family=family,
        note=f"within +-{EXPONENT_TOLERANCE:g}",
    )


def noisier_claims(rows: Sequence[Row]) -> list[Row]:
    """GN's noise over BN's at the smallest batch of both above 1, where BN is instance norm."""
    rows = [r for r in rows if r["norm"] in ("bn", "gn") and r["parameters"] in ("gamma", "beta")]
    rows = [r for r in rows if r["weights"] == SHARED or r["batch"] == r["at_batch"]]
    rows = [r for r in rows if 1 < r["at_batch"] < SMALL]
    shared = [r for r in rows if r["weights"] == SHARED]
    if {r["norm"] for r in shared} == {"bn", "gn"}:
        rows = shared  # one answer: of networks trained at the largest batch, as the exponents
    last = max((row["epoch"] for row in rows), default=None)
    pairs = _pairs([row for row in rows if row["epoch"] == last])
    cases = [(*pair, relative) for pair in pairs for relative in (False, True)]
    return [_noisier(*case, len(cases)) for case in cases]


def _noisier(gn: Row, bn: Row, relative: bool, family: int) -> Row:
    upper, lower = (_level(row, relative, family) for row in (gn, bn))
    value = upper[0] / lower[0] if lower[0] > 0 else math.nan
    lo = upper[1] / lower[2] if lower[2] > 0 else math.nan
    hi = upper[2] / lower[1] if lower[1] > 0 else math.inf
    of_what = "relative to its signal" if relative else "in itself"
    return claim_row(
        FLOW,
        f"{gn['parameters']}'s gradient is less noisy than BN's, {of_what}: GN / BN",
        series_name(gn),
        HOLDS if hi < 1 else FAILS if lo > 1 else UNDECIDED,
        **{"batch": gn["at_batch"], "unit": "", "value": value, "lo": lo, "hi": hi},
        n=f"{gn['n']} and {bn['n']}",
        family=family,
        note=f"{gn['weights']}, epoch {gn['epoch']}; the interval joins the ends of both, so it is "
        "wide",
    )


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return each GN row at its series' smallest batch, with the one BN row of the same point."""
    bn: dict[str, list[Row]] = {}
    for row in (row for row in rows if row["norm"] == "bn"):
        bn.setdefault(_point(row), []).append(row)
    smallest: dict[str, Row] = {}
    for row in (r for r in rows if r["norm"] == "gn" and len(bn.get(_point(r), ())) == 1):
        kept = smallest.setdefault(_text(row, (*_SIZES, "tuned")), row)
        if row["at_batch"] < kept["at_batch"]:
            smallest[_text(row, (*_SIZES, "tuned"))] = row
    found = [(gn, bn[_point(gn)][0]) for gn in smallest.values()]
    return [(gn, bn_row) for gn, bn_row in found if bn_row["noise"] > 0]


def _point(row: Row) -> str:
    return f"{_text(row, OF_THE_NORM)} {row['at_batch']}"


def _text(row: Row, without: Sequence[str]) -> str:
    keys = [k for k in cell_keys(row) if k not in without and not k.startswith("norm.")]
    return repr([(key, row[key]) for key in (*keys, "epoch", "parameters", "weights")])


def _level(row: Row, relative: bool, family: int) -> tuple[float, float, float]:
    """Return noise (over signal) and its interval, widened for the family; at worst (0, inf)."""
    dof = row["n"] - 1 if row["n"] > 1 else min(BLOCKS, row["k"]) - 1
    intervals = 4 * family if relative else 2 * family  # of so many, all hold at 95 %
    wider = t_quantile(1 - ALPHA / (2 * intervals), dof) / t_quantile(1 - ALPHA / 2, dof)

    def ends(name: str) -> tuple[float, float, float]:
        value, lo, hi = (row[f"{name}{end}"] for end in ("", "_lo", "_hi"))
        return value, value - wider * (value - lo), value + wider * (hi - value)

    noise, lo, hi = ends("noise")
    if not relative:
        return noise, max(lo, 0.0), hi
    signal, least, most = ends("signal")
    ratio = noise / signal if signal > 0 else math.nan
    return ratio, max(lo, 0.0) / most if most > 0 else 0.0, hi / least if least > 0 else math.inf
