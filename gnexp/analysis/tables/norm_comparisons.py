"""The tables behind the answer: every norm against BN, where they break even, what is lost."""

from collections.abc import Sequence

from gnexp.analysis.accuracy_drop import SMALL
from gnexp.analysis.batch_vs_update_batch import optimizer_is_fixed, whose_sentence
from gnexp.analysis.comparisons import TESTED
from gnexp.analysis.inference import MOST_SEEDS
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import (
    Column,
    Row,
    Table,
    bounds,
    format_number,
    interval,
    key_columns,
    names,
    number,
    points,
    words,
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
    return Table(
        "norm_comparisons",
        "Every norm against BN",
        f"Each norm minus BN at the same batch size. {FAMILY} {SOURCES} Beside it Welch's interval "
        "alone, over seeds. A diverged seed counts at chance. A comparison without a p has too few "
        "seeds or no spread, and does not count in the family.",
        [*key, *_COMPARED],
        [*key_columns(key), number("Minus BN (points)", "difference", points), *_TESTED],
        rows,
        _NO_BN,
    )


def _norm_pairs(rows: list[Row], key: Sequence[str]) -> Table:
    return Table(
        "norm_pairs",
        "Every norm against every other",
        "Each norm minus each other, BN apart, at the same batch size; all of a setting are one "
        "family ('all pairs'), Holm's adjustment and standard errors as in the table of every norm "
        "against BN. The answer is made from these two families.",
        [*key, *_COMPARED],
        [
            *key_columns(key),
            words("Minus", "against"),
            number("Difference (points)", "difference", points),
            *_TESTED,
        ],
        rows,
        "Fewer than two norms beside BN were trained.",
    )


def _break_even(rows: list[Row], key: Sequence[str]) -> Table:
    return Table(
        "break_even",
        "Break-even with BN",
        "The batch size at which the mean difference from BN crosses 0, interpolated in "
        "log2(batch), and the range over which the simultaneous interval holds 0, the intervals "
        "being those of the table of every norm against BN. 'above 64' says "
        "that the lead fades at the largest batch without the mean changing sign, 'below 1' the "
        "same at the smallest, 'none in range' that one side leads throughout, 'several' that the "
        "lead changes more than once.",
        [
            *(*key, *names("series against kind break_even batch lo hi ahead undecided behind")),
            *names("not_tested n family"),
        ],
        [
            *key_columns(key),
            words("Break-even batch (range)", "break_even"),
            words("Ahead of BN at", "ahead"),
            words("Undecided at", "undecided"),
            words("Behind BN at", "behind"),
            words("n", "n"),
        ],
        rows,
        _NO_BN,
    )


def _robustness(analysis: StudyAnalysis, key: Sequence[str]) -> Table:
    reference = analysis.reference_batch
    whose = whose_sentence(
        optimizer_is_fixed(cell.key for cell in line.cells) for line in analysis.series
    )
    return Table(
        "robustness",
        "What is lost as the batch shrinks",
        f"Accuracy lost as the batch shrinks from {reference}, fixed beforehand, with 95 % "
        f"intervals over seeds and test images, each on its own. {whose} Per halving: each seed's "
        "least-squares slope of accuracy on log2(batch) over the batch sizes up to the reference, "
        "interval over seeds alone. A diverged seed counts at chance. SD pooled over cells without "
        "diverged seeds; seeds: how many give a mean accuracy a 95 % interval of half a point "
        f"either way (range: from the 95 % interval of the SD), up to {MOST_SEEDS}.",
        [
            *(*key, *names("series reference_batch loss_2* n_2 loss_1* n_1 per_halving*")),
            *names("n_halving batches n_diverged sd dof seeds_needed*"),
        ],
        [
            *key_columns(key),
            *(
                _counted(f"Lost from {reference} to {b} (points)", f"loss_{b}", f"n_{b}")
                for b in SMALL
                if b != reference
            ),
            _counted("Lost per halving (points)", "per_halving", "n_halving"),
            words("Over batches", "batches"),
            number("SD of a seed (points)", "sd", points),
            Column("Seeds for half a point", _needed),
        ],
        analysis.robustness,
        "No seed is finished yet.",
    )


def _counted(header: str, name: str, n: str) -> Column:
    """Return a column of means that each name how many seeds they are of."""

    def text(row: Row) -> str:
        mean = points(row[name])
        both = f"{mean} {bounds(row[f'{name}_lo'], row[f'{name}_hi'])}".strip()
        return f"{both} (n = {row[n]})" if mean else ""

    return Column(header, text)


def sources(row: Row) -> str:
    """Return '0.34 (moderated), 0.67 (bound)', in points: both sources, where they are known."""
    both = (("se_seeds", "method"), ("se_images", "images"))
    return ", ".join(f"{points(row[se])} ({row[how]})" for se, how in both if row[how])


def _seeds(row: Row) -> str:
    lost = row["n_diverged"] + row["n_diverged_against"]
    return f"{row['n_a']} and {row['n_b']}" + (f", {lost} diverged" if lost else "")


def _verdict(row: Row) -> str:
    return f"{row['verdict']}: {row['note']}" if row["note"] else row["verdict"]


def _needed(row: Row) -> str:
    seeds = [row[f"seeds_needed{end}"] for end in ("", "_lo", "_hi")]
    value, lo, hi = (
        f"more than {MOST_SEEDS}" if n > MOST_SEEDS else format_number(n) for n in seeds
    )
    return f"{value} [{lo}, {hi}]" if lo else value


_NO_BN = "No norm was trained at the same batch size as BN, so there is nothing to compare with it."
_COMPARED = ("series", "against", *TESTED, "n_diverged", "n_diverged_against", "verdict", "note")
_TESTED = (
    interval("Simultaneous 95 % interval", "lo_simultaneous", "hi_simultaneous"),
    number("p, Holm", "p_holm"),
    interval("95 % interval alone", "lo", "hi"),
    number("p", "p"),
    Column("Standard error: seeds, images", sources),
    interval("Welch over seeds alone", "welch_lo", "welch_hi"),
    Column("n", _seeds),
    Column("Verdict", _verdict, False),
)
