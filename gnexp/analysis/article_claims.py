"""The article's claims on training, each with a verdict from the study's numbers.

A sentence about a difference holds or fails as its family of comparisons decides; one about a size
holds when its whole simultaneous interval lies inside the tolerance and fails when none of it does.
What the intervals leave open is undecided, which is no evidence of either.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gnexp.analysis import statistics
from gnexp.analysis.article_noise import exponent_claims, noisier_claims
from gnexp.analysis.article_rows import (
    COLUMNS,
    FAILS,
    HOLDS,
    POINTS,
    SMALL,
    UNDECIDED,
    claim_row,
    series_name,
)
from gnexp.analysis.article_shift import contrast_claims, shift_claims
from gnexp.analysis.batch_vs_update_batch import TOGETHER, optimizer_is_fixed, whose
from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.comparisons import all_samples, between, untuned_note
from gnexp.analysis.gradient_noise import SEPARATE_EXAMPLES
from gnexp.analysis.inference import AHEAD, BEHIND, UNTESTED, simultaneous
from gnexp.analysis.tables.table import Column, Row, Table, format_number


def article_claims(
    tables: Mapping[str, Table], lines: Sequence[Series], reference_batch: int
) -> Table:
    """Return a row per claim, series and batch that the study can test: COLUMNS.

    tables: the report's, by name, of which flatness, norm_comparisons, exponents,
    gradient_variance and shift_summary are read. value, lo, hi: in `unit`, fractions for points.
    """
    rows = [
        *_flat(tables["flatness"].rows),
        *_bn_falls(tables["flatness"].rows),
        *_gn_leads(tables["norm_comparisons"].rows),
        *_between(lines, reference_batch),
        *exponent_claims(tables["exponents"].rows),
        *noisier_claims(tables["gradient_variance"].rows),
        *shift_claims(tables["shift_summary"].rows),
        *contrast_claims(tables["shift_summary"].rows),
    ]
    shown = [
        Column("The article's claim", lambda r: r["claim"], False),
        Column("Of", lambda r: r["of"], False),
        Column("Batch", lambda r: format_number(r["batch"])),
        Column("Verdict", lambda r: r["verdict"], False),
        Column("Measured", _measured, False),
        Column("n", lambda r: r["n"], False),
        Column("Comparisons in its family", lambda r: format_number(r["family"])),
        Column("Note", lambda r: r["note"], False),
        Column("Chapter of the article", lambda r: r["article"], False),
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


def _between(lines: Sequence[Series], reference_batch: int) -> list[Row]:
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
    known = all_samples(lines)
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
            f"{name} {_number(POINTS, d.difference, a.lo, a.hi)}"
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


def _measured(row: Row) -> str:
    if row["measured"]:
        return row["measured"]
    text = _number(row["unit"], row["value"], row["lo"], row["hi"])
    return f"{text} {row['unit']}".strip()


def _number(unit: str, value: float, lo: float, hi: float) -> str:
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
