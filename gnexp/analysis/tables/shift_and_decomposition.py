"""Tables on the causes of lost accuracy: decomposition, shift, classes, batch composition."""

from collections.abc import Sequence

from gnexp.analysis import decomposition
from gnexp.analysis.batch_vs_update_batch import whose_sentence
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import (
    CellFormatter,
    Column,
    OfColumn,
    Row,
    Table,
    estimate,
    fixed,
    get,
    key_columns,
    percent,
    points,
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
    shown = _shown_columns(key, decomposition.ACCURACY, "%", "points", points)
    caption = (
        f"{_parts_caption(reference, rows)} A diverged seed counts in the damage at chance, under "
        "every statistic. Beside it the test accuracy under running (as reported), population "
        "(recomputed over training images, augmented as in training, or plain), test batch and "
        "single-image statistics: mean over the n seeds that did not diverge, 95 % interval (one "
        "seed: Wilson's over the test images)."
    )
    columns = _part_columns(key, decomposition.ACCURACY)
    title = "Where the accuracy is lost"
    return Table("decomposition", title, caption, columns, shown, rows, _NO_STATISTICS)


def _decomposition_loss(rows: list[Row], reference: int, key: Sequence[str]) -> Table:
    shown = _shown_columns(key, decomposition.LOSS, "nats", "nats", fixed)
    caption = (
        "The same for the test loss in nats (one seed: no interval). "
        f"{_parts_caption(reference, rows)} A diverged seed counts in the damage as ln(classes)."
    )
    columns = _part_columns(key, decomposition.LOSS)
    title, name = "Where the loss comes from", "decomposition_loss"
    return Table(name, title, caption, columns, shown, rows, _NO_STATISTICS)


def _shown_columns(
    key: Sequence[str], measure: str, unit: str, part_unit: str, cut: OfColumn
) -> list[Column]:
    levels = {n: decomposition.level_column(n, measure) for n in decomposition.STATISTICS}
    parts = {part: decomposition.part_column(part, measure) for part in decomposition.PARTS}
    return [
        *key_columns(key),
        *(Column(f"{_PARTS[p]} ({part_unit})", estimate(c, cut, "n")) for p, c in parts.items()),
        Column("Shared seeds", get("n_shared")),
        *(Column(f"{_LEVELS[n]} ({unit})", estimate(c, cut, f"n_{n}")) for n, c in levels.items()),
        Column("n", _counted),
        Column("Note", get("note"), False),
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
    return [
        *(*key, "reference_batch", "reference_update_batch", "n", "n_diverged"),
        *_three(*(decomposition.level_column(n, measure) for n in decomposition.STATISTICS)),
        *(*(f"n_{n}" for n in decomposition.STATISTICS[1:]), "interval", "n_shared", "n_at_chance"),
        *_three(*(decomposition.part_column(part, measure) for part in decomposition.PARTS)),
        *("pools", "apart", "note"),
    ]


def _shift(rows: list[Row], key: Sequence[str]) -> Table:
    columns = [
        *(*key, "corruption", "severity", "n", "n_diverged", "images"),
        *_three("accuracy", "loss_nats", "rise", "share_lost"),
        *("n_rise", "interval"),
    ]
    shown = [
        *key_columns(key),
        Column("Corruption", get("corruption"), False),
        Column("Severity", get("severity")),
        Column("Accuracy (%)", estimate("accuracy")),
        Column("Loss (nats)", estimate("loss_nats", fixed)),
        Column("Rise of the error (points)", estimate("rise", points, "n_rise")),
        Column("Share lost (%)", estimate("share_lost", _share, "n_rise")),
        Column("n", get("n")),
        Column("Diverged", get("n_diverged")),
        Column("Images", get("images")),
    ]
    caption = (
        "Test accuracy on corrupted images, running statistics: mean over n seeds with 95 % "
        "interval (one seed: Wilson's over its test images for the accuracy, none for the rest). "
        "Rise: error minus that of the same networks on the same clean images, paired over seeds. "
        f"{_SHARE} Diverged seeds are left out."
    )
    title = "Every corruption and severity"
    return Table("shift", title, caption, columns, shown, rows, _NO_SHIFT)


def _shift_summary(rows: list[Row], key: Sequence[str]) -> Table:
    apart = [k for k in (rows[0] if rows else ()) if k.startswith("rise_")]
    apart = [k for k in apart if not k.endswith(("_lo", "_hi"))]
    columns = [
        *(*key, "n", "n_left_out", "n_diverged", "corruptions", "severities"),
        *_three("clean", "corrupted", "rise", "share_lost"),
        *("chance", "reference", "n_shared", *_three("mce", "relative_mce", *apart)),
        *_three(*(f"share_lost_{k.removeprefix('rise_')}" for k in apart)),
        *(*(f"n_{k}" for k in apart), "note"),
    ]
    shown = [
        *key_columns(key),
        Column("Clean (%)", estimate("clean")),
        Column("Corrupted (%)", estimate("corrupted")),
        Column("Rise of the error (points)", estimate("rise")),
        Column("Share lost (%)", estimate("share_lost", _share)),
        Column("n", get("n")),
        Column("Corruptions", get("corruptions")),
        Column("Severities", get("severities")),
        Column("mCE (%)", estimate("mce")),
        Column("Relative mCE (%)", estimate("relative_mce")),
        Column("mCE relative to", get("reference"), False),
        Column("Shared seeds", get("n_shared")),
        *(column for k in apart for column in _apart(k.removeprefix("rise_"))),
        Column("Note", get("note"), False),
    ]
    caption = (
        "Mean over the standard corruptions x severities that were measured. A network that is "
        "worse on clean images is not for that less robust: the rise, error on corrupted minus "
        "error on clean images of the same network, is the column to compare. mCE: errors summed "
        "over severities over those of BN at the same batch size, averaged over corruptions "
        "(Hendrycks & Dietterich 2019, with another reference); relative mCE: the same of the "
        f"rises. {_SHARE} Where that BN is itself damaged, both mCE flatter the others; "
        "and where clean accuracy is near chance few points are left to lose. Means over n seeds "
        "that have every condition, 95 % t intervals (one seed: none); mCE paired over shared "
        "seeds, jackknife. Corruptions that are not standard stand apart and enter no mean. "
        "Diverged seeds are left out."
    )
    title = "Shifted test images, in sum"
    return Table("shift_summary", title, caption, columns, shown, rows, _NO_SHIFT)


def _classes(rows: list[Row], key: Sequence[str]) -> Table:
    columns = [
        *(*key, "n", "n_left_out", "n_diverged", "classes", "images_per_class", *_three("mean")),
        *("worst_class", *_three("worst"), "best_class", *_three("best"), "gap"),
        *("chance_gap", "chance_gap_95", "gap_p", *_three("ece"), "n_ece", "note"),
    ]
    shown = [
        *key_columns(key),
        Column("Mean accuracy (%)", estimate("mean")),
        Column("Worst class", get("worst_class"), False),
        Column("Its accuracy (%)", estimate("worst")),
        Column("Best class", get("best_class"), False),
        Column("Its accuracy (%)", estimate("best")),
        Column("Gap (points)", points("gap")),
        Column("Gap by chance (points)", points("chance_gap")),
        Column("its 95 % quantile", points("chance_gap_95")),
        Column("p", get("gap_p")),
        Column("n", _counted),
        Column("Calibration error (%)", estimate("ece")),
        Column("n", get("n_ece")),
        Column("Note", get("note"), False),
    ]
    caption = (
        "Accuracy by class, running statistics. Gap: best minus worst class, each first averaged "
        "over the n seeds, since the gap of one seed is larger by chance. Being an extreme it has "
        "no interval but a level: the gap that equally hard classes would show by chance, its mean "
        "and 95 % quantile; p is how often chance reaches the gap, in these networks, which says "
        "nothing of other seeds. The intervals of the worst and "
        "the best class do not know that they were picked. Calibration error: expected, mean over "
        "seeds. Diverged seeds are left out."
    )
    empty = "No class accuracies were measured: gnexp measure what=classes does."
    return Table("classes", "Classes", caption, columns, shown, rows, empty)


def _batches(rows: list[Row], key: Sequence[str]) -> Table:
    columns = [
        *(*key, "statistics", "composition", "at_batch", "n", "n_diverged", "images"),
        *(*_three("accuracy"), "interval", "expected", *_three("change"), "n_change"),
        *(*_three("loss_nats"), "logit_change"),
    ]
    shown = [
        *key_columns(key),
        Column("Statistics", get("statistics"), False),
        Column("Composition", lambda row: str(row["composition"]).replace("_", " "), False),
        Column("Evaluated at batch", get("at_batch")),
        Column("Accuracy (%)", estimate("accuracy")),
        Column("Change (points)", estimate("change", points, "n_change")),
        Column("Largest logit change", get("logit_change")),
        Column("n", get("n")),
        Column("Images", get("images")),
    ]
    caption = (
        "Test images evaluated with running statistics or those of the batch, in other batches: "
        "drawn at random (iid), half of one class (skewed) or wholly (one class), and "
        "label shifts, where classes count by unequal priors. Mean over n seeds with 95 % interval "
        "(one seed: Wilson's over its test images). Change: accuracy minus what it would be if "
        "only the size of a batch mattered (for iid: minus the usual evaluation), paired over "
        "seeds (one seed: no interval). Largest logit change: the most that any logit of any seed "
        "moved, over the rms of its network's logits; a maximum, so without an interval, and "
        "about 1e-5, rounding, where an image's answer does not depend on its batch. Diverged "
        "seeds are left out."
    )
    empty = "No evaluation in other batches was measured: gnexp measure what=batches does."
    return Table("batches", "Batch composition", caption, columns, shown, rows, empty)


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


def _three(*names: str) -> list[str]:
    return [f"{name}{end}" for name in names for end in decomposition.ENDS]


def _share(column: str) -> CellFormatter:
    return lambda row: percent(row.get(column), 1)


def _apart(name: str) -> list[Column]:
    """Return the columns of a corruption that is not standard."""
    words, n = name.replace("_", " "), f"n_rise_{name}"
    return [
        Column(f"Rise, {words} (points)", estimate(f"rise_{name}", points, n)),
        Column(f"Share lost, {words} (%)", estimate(f"share_lost_{name}", _share, n)),
    ]


def _counted(row: Row) -> str:
    lost = row["n_diverged"]
    return f"{row['n']}, {lost} of {row['n'] + lost} diverged" if lost else str(row["n"])
