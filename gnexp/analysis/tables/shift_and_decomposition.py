"""Tables on the causes of lost accuracy: decomposition, shift, classes, batch composition."""

from collections.abc import Sequence

from gnexp.analysis import decomposition
from gnexp.analysis.batch_vs_update_batch import whose_sentence
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import (
    Column,
    Row,
    Table,
    Unit,
    estimated,
    fixed,
    key_columns,
    names,
    number,
    percent,
    points,
    words,
)

WHY_TABLES = ("decomposition", "decomposition_loss", "shift", "shift_summary", "classes", "batches")


def why_tables(analysis: StudyAnalysis, key: Sequence[str]) -> list[Table]:
    """Return the tables of WHY_TABLES; a table of nothing measured has no row and a reason.

    key: the columns that identify a cell.
    """
    reference = analysis.reference_batch
    return [
        _decomposition(analysis.decomposition, reference, key),
        _decomposition_loss(analysis.decomposition_loss, reference, key),
        _shift(analysis.shift, key),
        _shift_summary(analysis.shift_summary, key),
        _classes(analysis.classes, key),
        _batches(analysis.batches, key),
    ]


def _decomposition(rows: list[Row], reference: int, key: Sequence[str]) -> Table:
    return Table(
        "decomposition",
        "Where the accuracy is lost",
        f"{_parts_caption(reference, rows)} A diverged seed counts in the damage at chance, under "
        "every statistic. Beside it the test accuracy under running (as reported), population "
        "(recomputed over training images, augmented as in training, or plain), test batch and "
        "single-image statistics: mean over the n seeds that did not diverge, 95 % interval (one "
        "seed: Wilson's over the test images).",
        _part_columns(key, decomposition.ACCURACY),
        _shown_columns(key, decomposition.ACCURACY, "%", "points", points),
        rows,
        _NO_STATISTICS,
    )


def _decomposition_loss(rows: list[Row], reference: int, key: Sequence[str]) -> Table:
    return Table(
        "decomposition_loss",
        "Where the loss comes from",
        "The same for the test loss in nats (one seed: no interval). "
        f"{_parts_caption(reference, rows)} A diverged seed counts in the damage as ln(classes).",
        _part_columns(key, decomposition.LOSS),
        _shown_columns(key, decomposition.LOSS, "nats", "nats", fixed),
        rows,
        _NO_STATISTICS,
    )


def _shown_columns(
    key: Sequence[str], measure: str, unit: str, part_unit: str, cut: Unit
) -> list[Column]:
    level, part = decomposition.level_column, decomposition.part_column
    return [
        *key_columns(key),
        *(estimated(f"{t} ({part_unit})", part(p, measure), cut) for p, t in _PARTS.items()),
        number("Shared seeds", "n_shared"),
        *(estimated(f"{t} ({unit})", level(s, measure), cut, f"n_{s}") for s, t in _LEVELS.items()),
        Column("n", _counted),
        words("Note", "note"),
    ]


def _parts_caption(reference: int, rows: Sequence[Row]) -> str:
    whom = whose_sentence(row["update_batch"] == row["reference_update_batch"] for row in rows)
    return (
        f"Lost against batch {reference}, fixed beforehand, paired over shared seeds, 95 % t "
        "intervals; total = in training (population statistics of augmented training images do "
        "not repair it) + in evaluation (they do; 0 where a norm keeps no running statistics). A "
        "run without such statistics has no parts. At batch 1 a norm that pools over the batch "
        "trains on single images, as instance norm; no population statistics can repair that, so "
        "it is counted in training, and single-image statistics show the network as it was "
        f"trained. {whom}"
    )


def _part_columns(key: Sequence[str], measure: str) -> list[str]:
    levels = (decomposition.level_column(name, measure) for name in decomposition.STATISTICS)
    parts = (decomposition.part_column(part, measure) for part in decomposition.PARTS)
    return [
        *(*key, *names("reference_batch reference_update_batch n n_diverged")),
        *names(" ".join(f"{column}*" for column in levels)),
        *names(" ".join(f"n_{name}" for name in decomposition.STATISTICS[1:])),
        *names("interval n_shared n_at_chance"),
        *names(" ".join(f"{column}*" for column in parts)),
        *names("pools apart note"),
    ]


def _shift(rows: list[Row], key: Sequence[str]) -> Table:
    return Table(
        "shift",
        "Every corruption and severity",
        "Test accuracy on corrupted images, running statistics: mean over n seeds with 95 % "
        "interval (one seed: Wilson's over its test images for the accuracy, none for the rest). "
        "Rise: error minus that of the same networks on the same clean images, paired over seeds. "
        f"{_SHARE} Diverged seeds are left out.",
        [
            *(*key, *names("corruption severity n n_diverged images accuracy* loss_nats* rise*")),
            *names("share_lost* n_rise interval"),
        ],
        [
            *key_columns(key),
            words("Corruption", "corruption"),
            number("Severity", "severity"),
            estimated("Accuracy (%)", "accuracy"),
            estimated("Loss (nats)", "loss_nats", fixed),
            estimated("Rise of the error (points)", "rise", n="n_rise"),
            estimated("Share lost (%)", "share_lost", percent, "n_rise"),
            number("n", "n"),
            number("Diverged", "n_diverged"),
            number("Images", "images"),
        ],
        rows,
        _NO_SHIFT,
    )


def _shift_summary(rows: list[Row], key: Sequence[str]) -> Table:
    known = rows[0] if rows else ()
    own = [k.removeprefix("n_rise_") for k in known if k.startswith("n_rise_")]  # not standard
    return Table(
        "shift_summary",
        "Shifted test images, in sum",
        "Mean over the standard corruptions x severities that were measured. A network that is "
        "worse on clean images is not for that less robust: the rise, error on corrupted minus "
        "error on clean images of the same network, is the column to compare. mCE: errors summed "
        "over severities over those of BN at the same batch size, averaged over corruptions "
        "(Hendrycks & Dietterich 2019, with another reference); relative mCE: the same of the "
        f"rises. {_SHARE} Where that BN is itself damaged, both mCE flatter the others; "
        "and where clean accuracy is near chance few points are left to lose. Means over n seeds "
        "that have every condition, 95 % t intervals (one seed: none); mCE paired over shared "
        "seeds, jackknife. Corruptions that are not standard stand apart and enter no mean. "
        "Diverged seeds are left out.",
        [
            *(*key, *names("n n_left_out n_diverged corruptions severities clean* corrupted*")),
            *names("rise* share_lost* chance reference n_shared mce* relative_mce*"),
            *names(" ".join(f"rise_{name}*" for name in own)),
            *names(" ".join(f"share_lost_{name}*" for name in own)),
            *names(" ".join(f"n_rise_{name}" for name in own)),
            "note",
        ],
        [
            *key_columns(key),
            estimated("Clean (%)", "clean"),
            estimated("Corrupted (%)", "corrupted"),
            estimated("Rise of the error (points)", "rise"),
            estimated("Share lost (%)", "share_lost", percent),
            number("n", "n"),
            number("Corruptions", "corruptions"),
            number("Severities", "severities"),
            estimated("mCE (%)", "mce"),
            estimated("Relative mCE (%)", "relative_mce"),
            words("mCE relative to", "reference"),
            number("Shared seeds", "n_shared"),
            *(column for name in own for column in _of_own(name, name.replace("_", " "))),
            words("Note", "note"),
        ],
        rows,
        _NO_SHIFT,
    )


def _of_own(name: str, text: str) -> list[Column]:
    """Return the columns of a corruption that is not standard."""
    return [
        estimated(f"Rise, {text} (points)", f"rise_{name}", n=f"n_rise_{name}"),
        estimated(f"Share lost, {text} (%)", f"share_lost_{name}", percent, f"n_rise_{name}"),
    ]


def _classes(rows: list[Row], key: Sequence[str]) -> Table:
    return Table(
        "classes",
        "Classes",
        "Accuracy by class, running statistics. Gap: best minus worst class, each first averaged "
        "over the n seeds, since the gap of one seed is larger by chance. Being an extreme it has "
        "no interval but a level: the gap that equally hard classes would show by chance, its mean "
        "and 95 % quantile; p is how often chance reaches the gap, in these networks, which says "
        "nothing of other seeds. The intervals of the worst and "
        "the best class do not know that they were picked. Calibration error: expected, mean over "
        "seeds. Diverged seeds are left out.",
        [
            *(*key, *names("n n_left_out n_diverged classes images_per_class mean* worst_class")),
            *names("worst* best_class best* gap chance_gap chance_gap_95 gap_p ece* n_ece note"),
        ],
        [
            *key_columns(key),
            estimated("Mean accuracy (%)", "mean"),
            words("Worst class", "worst_class"),
            estimated("Its accuracy (%)", "worst"),
            words("Best class", "best_class"),
            estimated("Its accuracy (%)", "best"),
            number("Gap (points)", "gap", points),
            number("Gap by chance (points)", "chance_gap", points),
            number("its 95 % quantile", "chance_gap_95", points),
            number("p", "gap_p"),
            Column("n", _counted),
            estimated("Calibration error (%)", "ece"),
            number("n", "n_ece"),
            words("Note", "note"),
        ],
        rows,
        "No class accuracies were measured: gnexp measure what=classes does.",
    )


def _batches(rows: list[Row], key: Sequence[str]) -> Table:
    return Table(
        "batches",
        "Batch composition",
        "Test images evaluated with running statistics or those of the batch, in other batches: "
        "drawn at random (iid), half of one class (skewed) or wholly (one class), and "
        "label shifts, where classes count by unequal priors. Mean over n seeds with 95 % interval "
        "(one seed: Wilson's over its test images). Change: accuracy minus what it would be if "
        "only the size of a batch mattered (for iid: minus the usual evaluation), paired over "
        "seeds (one seed: no interval). Largest logit change: the most that any logit of any seed "
        "moved, over the rms of its network's logits; a maximum, so without an interval, and "
        "about 1e-5, rounding, where an image's answer does not depend on its batch. Diverged "
        "seeds are left out.",
        [
            *(*key, *names("statistics composition at_batch n n_diverged images accuracy*")),
            *names("interval expected change* n_change loss_nats* logit_change"),
        ],
        [
            *key_columns(key),
            words("Statistics", "statistics"),
            Column("Composition", lambda row: row["composition"].replace("_", " "), False),
            number("Evaluated at batch", "at_batch"),
            estimated("Accuracy (%)", "accuracy"),
            estimated("Change (points)", "change", n="n_change"),
            number("Largest logit change", "logit_change"),
            number("n", "n"),
            number("Images", "images"),
        ],
        rows,
        "No evaluation in other batches was measured: gnexp measure what=batches does.",
    )


_LEVELS = {
    "running": "Running",
    "population_augmented": "Population",
    "population": "Population, plain images",
    "batch": "Test batch",
    "example": "Single image",
}
_PARTS = {"total": "Total damage", "training": "In training", "evaluation": "In evaluation"}
_NO_STATISTICS = "No statistics but the running ones were evaluated."
_SHARE = (
    "Share lost: the rise over the clean accuracy above chance, (clean - corrupted) / (clean - 1 / "
    "classes), sums over seeds, Fieller's 95 % interval (none where clean accuracy is not decidedly"
    " above chance)."
)
_NO_SHIFT = "No shifted test images were measured: gnexp measure what=shift does."


def _counted(row: Row) -> str:
    lost = row["n_diverged"]
    return f"{row['n']}, {lost} of {row['n'] + lost} diverged" if lost else str(row["n"])
