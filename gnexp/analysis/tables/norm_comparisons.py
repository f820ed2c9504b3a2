"""The tables behind the answer: every norm against BN, where they break even, what is lost."""

from collections.abc import Sequence

from gnexp.analysis.accuracy_drop import SMALL
from gnexp.analysis.batch_vs_update_batch import optimizer_is_fixed, whose_sentence
from gnexp.analysis.comparisons import TESTED
from gnexp.analysis.inference import MOST_SEEDS
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import (
    CellFormatter,
    Column,
    Row,
    Table,
    bounds,
    get,
    key_columns,
    percent,
    points,
)

NORM_TABLES = ("norm_comparisons", "norm_pairs", "break_even", "robustness")
FAMILY = (
    "Family 'norm against BN': Holm's adjustment over all norms and batch sizes of a setting "
    "(model, data, update rule); the simultaneous intervals agree with its decisions at "
    "5 % and together hold all true differences of a family in 95 % of studies (an end that is "
    "exactly 0 rests on Holm alone)."
)
SOURCES = (
    "The standard error has two sources. Seeds: by variances that the cells of a setting lend one "
    "another (moderated), or each cell's own (Welch) in a setting of few cells. Test images: from "
    "which images each network is right about (crossed), or where only accuracies are known by the "
    "conservative bound p(1-p)/N of each cell (bound)."
)


def evidence_tables(analysis: StudyAnalysis, key: Sequence[str]) -> list[Table]:
    """Return the tables of NORM_TABLES; a table without a comparison has no row and a reason.

    key: the columns that identify a cell.
    """
    whole = [k for k in key if k not in ("batch", "update_batch")]
    return [
        _norm_comparisons(analysis.norm_comparisons, key),
        _norm_pairs(analysis.norm_pairs, key),
        _break_even(analysis.break_even, whole),
        _robustness(analysis, whole),
    ]


def _norm_comparisons(rows: list[Row], key: Sequence[str]) -> Table:
    caption = (
        f"Each norm minus BN at the same batch size. {FAMILY} {SOURCES} Beside it Welch's interval "
        "alone, over seeds. A diverged seed counts at chance. A comparison without a p has too few "
        "seeds or no spread, and does not count in the family."
    )
    shown = [*key_columns(key), Column("Minus BN (points)", points("difference")), *_tested()]
    title = "Every norm against BN"
    columns = [*key, *_COMPARED]
    return Table("norm_comparisons", title, caption, columns, shown, rows, _NO_BN)


def _norm_pairs(rows: list[Row], key: Sequence[str]) -> Table:
    caption = (
        "Each norm minus each other, BN apart, at the same batch size; all of a setting are one "
        "family ('all pairs'), Holm's adjustment and standard errors as in the table of every norm "
        "against BN. The answer is made from these two families."
    )
    difference = Column("Difference (points)", points("difference"))
    shown = [*key_columns(key), Column("Minus", get("against"), False), difference, *_tested()]
    title, empty = "Every norm against every other", "Fewer than two norms beside BN were trained."
    columns = [*key, *_COMPARED]
    return Table("norm_pairs", title, caption, columns, shown, rows, empty)


_COMPARED = ("series", "against", *TESTED, "n_diverged", "n_diverged_against", "verdict", "note")


def _tested() -> list[Column]:
    return [
        Column("Simultaneous 95 % interval", bounds("lo_simultaneous", "hi_simultaneous")),
        Column("p, Holm", get("p_holm")),
        Column("95 % interval alone", bounds("lo", "hi")),
        Column("p", get("p")),
        Column("Standard error: seeds, images", sources),
        Column("Welch over seeds alone", bounds("welch_lo", "welch_hi")),
        Column("n", _seeds),
        Column("Verdict", _verdict, False),
    ]


def _break_even(rows: list[Row], key: Sequence[str]) -> Table:
    columns = [
        *(*key, "series", "against", "kind", "break_even", "batch", "lo", "hi"),
        *("ahead", "undecided", "behind", "not_tested", "n", "family"),
    ]
    shown = [
        *key_columns(key),
        Column("Break-even batch (range)", get("break_even"), False),
        Column("Ahead of BN at", get("ahead"), False),
        Column("Undecided at", get("undecided"), False),
        Column("Behind BN at", get("behind"), False),
        Column("n", get("n"), False),
    ]
    caption = (
        "The batch size at which the mean difference from BN crosses 0, interpolated in "
        "log2(batch), and the range over which the simultaneous interval holds 0, the intervals "
        "being those of the table of every norm against BN. 'above 64' says "
        "that the lead fades at the largest batch without the mean changing sign, 'below 1' the "
        "same at the smallest, 'none in range' that one side leads throughout, 'several' that the "
        "lead changes more than once."
    )
    return Table("break_even", "Break-even with BN", caption, columns, shown, rows, _NO_BN)


def _robustness(analysis: StudyAnalysis, key: Sequence[str]) -> Table:
    rows, reference = analysis.robustness, analysis.reference_batch
    whose = whose_sentence(
        optimizer_is_fixed(cell.key for cell in line.cells) for line in analysis.series
    )
    columns = [*key, "series", "reference_batch"]
    for batch in SMALL:
        columns += [f"loss_{batch}", f"loss_{batch}_lo", f"loss_{batch}_hi", f"n_{batch}"]
    columns += ["per_halving", "per_halving_lo", "per_halving_hi", "n_halving", "batches"]
    columns += ["n_diverged", "sd", "dof", "seeds_needed", "seeds_needed_lo", "seeds_needed_hi"]
    shown = [
        *key_columns(key),
        *(
            Column(f"Lost from {reference} to {b} (points)", _estimate(f"loss_{b}", f"n_{b}"))
            for b in SMALL
            if b != reference
        ),
        Column("Lost per halving (points)", _estimate("per_halving", "n_halving")),
        Column("Over batches", get("batches"), False),
        Column("SD of a seed (points)", points("sd")),
        Column("Seeds for half a point", _needed),
    ]
    caption = (
        f"Accuracy lost as the batch shrinks from {reference}, fixed beforehand, with 95 % "
        f"intervals over seeds and test images, each on its own. {whose} Per halving: each seed's "
        "least-squares slope of accuracy on log2(batch) over the batch sizes up to the reference, "
        "interval over seeds alone. A diverged seed counts at chance. SD pooled over cells without "
        "diverged seeds; seeds: how many give a mean accuracy a 95 % interval of half a point "
        f"either way (range: from the 95 % interval of the SD), up to {MOST_SEEDS}."
    )
    title, empty = "What is lost as the batch shrinks", "No seed is finished yet."
    return Table("robustness", title, caption, columns, shown, rows, empty)


_NO_BN = "No norm was trained at the same batch size as BN, so there is nothing to compare with it."


def _estimate(name: str, n: str) -> CellFormatter:
    interval = bounds(f"{name}_lo", f"{name}_hi")

    def text(row: Row) -> str:
        value = points(name)(row)
        return f"{value} {interval(row)}".strip() + f" (n = {row[n]})" if value else ""

    return text


def sources(row: Row) -> str:
    """Return '0.34 (moderated), 0.67 (bound)', in points: both sources, where they are known."""
    seeds, images = percent(row["se_seeds"], 2), percent(row["se_images"], 2)
    parts = [f"{seeds} ({row['method']})"] * bool(row["method"])
    return ", ".join(parts + [f"{images} ({row['images']})"] * bool(row["images"]))


def _seeds(row: Row) -> str:
    lost = row["n_diverged"] + row["n_diverged_against"]
    return f"{row['n_a']} and {row['n_b']}" + (f", {lost} diverged" if lost else "")


def _verdict(row: Row) -> str:
    return f"{row['verdict']}: {row['note']}" if row["note"] else row["verdict"]


def _needed(row: Row) -> str:
    value, lo, hi = (row[f"seeds_needed{end}"] for end in ("", "_lo", "_hi"))
    if value != value:
        return ""
    return f"{_count(value)} [{_count(lo)}, {_count(hi)}]" if lo == lo else _count(value)


def _count(seeds: float) -> str:
    return f"more than {MOST_SEEDS}" if seeds > MOST_SEEDS else str(seeds)
