"""The report's tables: which columns they have, what people see of them, and what they mean."""

import statistics
from collections.abc import Sequence

from gnexp.analysis.batch_vs_update_batch import whose_sentence
from gnexp.analysis.cells import BASE, RUN_COLUMNS
from gnexp.analysis.eval_split import TEST, VALIDATION, table_for_split
from gnexp.analysis.inference import equivalence_needs
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.article_claims import article_claims_table
from gnexp.analysis.tables.batch_vs_update_batch import two_batches_table
from gnexp.analysis.tables.lr_search import tuning_tables
from gnexp.analysis.tables.norm_comparisons import evidence_tables, sources
from gnexp.analysis.tables.shift_and_decomposition import why_tables
from gnexp.analysis.tables.table import (
    Column,
    Row,
    Table,
    bounds,
    fixed,
    get,
    key_columns,
    percent,
    points,
)

ACCURACY_COLUMNS = ("n", "n_diverged", "mean", "sd", "lo", "hi", "interval")
ACCURACY_COLUMNS += ("lo_images", "hi_images")


def build_tables(analysis: StudyAnalysis) -> dict[str, Table]:
    """Return every table of the report by name; a table without data has no row and a reason.

    Columns keep their names (test_acc) where all runs are judged on validation images; what people
    read says so.
    """
    per_group = any(row["channels_per_group"] is not None for row in analysis.runs)
    extras = [k for k in dict.fromkeys(k for c in analysis.cells for k in c.key) if k not in BASE]
    key = [k for k in BASE if per_group or k != "channels_per_group"] + extras
    tables = [
        _runs(analysis.runs, per_group),
        _accuracy(analysis.accuracy, key),
        _flatness(analysis.flatness, key, analysis.reference_batch),
        *evidence_tables(analysis, key),
        _gradients(analysis.gradient_variance, key),
        _exponents(analysis.exponents, key),
        _check(analysis.noise_check, key),
        two_batches_table(analysis.two_batches, key),
        *why_tables(analysis, key),
    ]
    tables = [table_for_split(table, analysis.eval_split) for table in tables]
    tables += tuning_tables(analysis.chosen_rates, analysis.tuning)
    tables.append(article_claims_table(analysis.article_claims))
    return {table.name: table for table in tables}


def _runs(rows: list[Row], per_group: bool) -> Table:
    columns = list(rows[0] if rows else RUN_COLUMNS)
    if not per_group:
        columns.remove("channels_per_group")
    shown = [Column("Run", get("run"), False), *key_columns(["norm", "groups"])]
    shown += key_columns(["channels_per_group"] if per_group else [])
    shown += key_columns(["batch", "update_batch", "lr"])
    both = {row.get("split") for row in rows} == {TEST, VALIDATION}
    accuracy, loss = ("Accuracy", "Loss") if both else ("Test accuracy", "Test loss")
    shown += [
        Column("Seed", get("seed")),
        Column("Status", get("status"), False),
        *([Column("Judged on", get("split"), False)] if both else []),
        Column(f"{accuracy}, last epoch (%)", points("test_acc")),
        Column(f"{accuracy}, median of last 5 (%)", points("test_acc_median5")),
        Column(f"{loss} (nats)", get("test_loss")),
        Column("Train loss (nats)", get("train_loss")),
        Column("Epochs", get("epochs")),
        Column("Images seen", get("examples_seen")),
        Column("Training time (s)", get("train_time_s")),
        Column("Execution", get("execution"), False),
        Column("Seeds per step", get("stack")),
        Column("Device", get("device"), False),
    ]
    caption = "Every run and seed. No epoch is selected: the last one is the result."
    return Table("runs", "Runs", caption, columns, shown, rows, "The study holds no run.")


def _accuracy(rows: list[Row], key: list[str]) -> Table:
    shown = [
        *key_columns(key),
        Column("Test accuracy (%)", points("mean")),
        Column("95 % interval", bounds("lo", "hi")),
        Column("over seeds and test images", bounds("lo_images", "hi_images")),
        Column("SD over seeds", points("sd")),
        Column("n", get("n")),
        Column("Diverged", _diverged, False),
        Column("Interval over", get("interval"), False),
    ]
    caption = (
        "Test accuracy of the last epoch: mean over the n seeds that did not diverge, with its "
        "95 % interval (Student's t over seeds; for one seed Wilson's binomial interval over the "
        "test images, which says nothing about other seeds). Over seeds and test images: also for "
        "other test images of the same kind, from which images each seed is right about, or where "
        "that is unknown as if all seeds erred on the same; diverged seeds leave it open."
    )
    columns = [*key, *ACCURACY_COLUMNS]
    return Table("accuracy", "Accuracy", caption, columns, shown, rows, "No seed is finished yet.")


def _flatness(rows: list[Row], key: list[str], reference: int) -> Table:
    columns = [
        *key,
        *("reference_batch", "reference_update_batch", "n", "n_reference", "n_diverged"),
        *("difference", "lo90", "hi90", "lo95", "hi95"),
        *("method", "se_seeds", "se_images", "images", "dof"),
        *("p_equivalence", "p", "p_holm", "lo_simultaneous", "hi_simultaneous", "family"),
        *("p_equivalence_holm", "verdict", "differs"),
    ]
    shown = [
        *key_columns(key),
        Column(f"Accuracy minus that at batch {reference} (points)", points("difference")),
        Column("Simultaneous 95 % interval", bounds("lo_simultaneous", "hi_simultaneous")),
        Column("p, Holm", get("p_holm")),
        Column("95 % interval alone", bounds("lo95", "hi95")),
        Column("90 % interval alone", bounds("lo90", "hi90")),
        Column("Standard error: seeds, images", sources),
        Column("n", lambda row: f"{row['n']} and {row['n_reference']}"),
        Column("Verdict", get("verdict"), False),
    ]
    if any(row["differs"] for row in rows):
        shown.append(Column("Also differs", get("differs"), False))
    fixed = [row["update_batch"] == row["reference_update_batch"] for row in rows]
    whose = whose_sentence(fixed)
    caption = (
        f"Each batch size against batch {reference}, fixed beforehand. {whose} All rows are one "
        "family ('batch against reference') with Holm's adjustment, and the simultaneous intervals "
        "agree with it. Flat within 1 point: the difference lies inside +-1 point by two one-sided "
        "tests, at 5 % after Holm over all rows (family 'equivalence'); otherwise lower or higher "
        f"when Holm rejects at 5 %. {_needs(rows)}Standard errors as in the table of every norm "
        "against BN. A diverged seed counts at chance."
    )
    empty = (
        f"No norm was trained both at the reference batch {reference} and at another batch size, "
        "so there is nothing to compare."
    )
    return Table("flatness", "What the batch size costs", caption, columns, shown, rows, empty)


def _gradients(rows: list[Row], key: list[str]) -> Table:
    columns = [
        *key,
        *("epoch", "at_batch", "parameters", "weights", "n", "k", "noise", "noise_lo", "noise_hi"),
        *("signal", "signal_lo", "signal_hi", "relative_noise", "noise_scale"),
        *("noise_scale_lo", "noise_scale_hi", "weight_norm", "weight_norm2_noise", "interval"),
    ]
    shown = [
        *key_columns(key),
        Column("Epoch", get("epoch")),
        Column("Measured at batch", get("at_batch")),
        Column("Parameters", get("parameters"), False),
        Column("Noise", get("noise")),
        Column("95 % interval", bounds("noise_lo", "noise_hi", get)),
        Column("Signal", get("signal")),
        Column("95 % interval", bounds("signal_lo", "signal_hi", get)),
        Column("Noise scale (images)", get("noise_scale")),
        Column("Range", bounds("noise_scale_lo", "noise_scale_hi", get)),
        Column("|w|^2 x noise", get("weight_norm2_noise")),
        Column("Seeds", get("n")),
        Column("Draws", get("k")),
    ]
    caption = (
        "Gradient noise (trace of the covariance of a mini-batch gradient, unbiased) and signal "
        "(squared norm of the expected gradient, unbiased, may be negative), in (loss/parameter)^2:"
        " mean over seeds with 95 % interval (one seed: block jackknife over its draws). Noise "
        "scale is batch x noise / signal; its range combines both intervals and has no upper end "
        "when the signal's reaches 0. Epoch 0 is the initialization."
    )
    title = "Gradient variance"
    return Table("gradient_variance", title, caption, columns, shown, rows, _NO_GRADIENTS)


def _exponents(rows: list[Row], key: list[str]) -> Table:
    columns = [
        *(k for k in key if k not in ("batch", "update_batch")),
        *("weights", "batch", "update_batch", "epoch", "parameters", "slope", "se", "lo95", "hi95"),
        *("lo997", "hi997", "dof", "n_points", "n_seeds", "expected", "at_batches"),
        "batch_1_ratio",
    ]
    shown = [
        *key_columns([k for k in key if k not in ("batch", "update_batch")]),
        Column("Weights", _weights, False),
        Column("Epoch", get("epoch")),
        Column("Parameters", get("parameters"), False),
        Column("Exponent", fixed("slope")),
        Column("95 % interval", bounds("lo95", "hi95", fixed)),
        Column("99.7 % interval", bounds("lo997", "hi997", fixed)),
        Column("Expected", get("expected")),
        Column("Points", get("n_points")),
        Column("Seeds", get("n_seeds")),
        Column("At batch", get("at_batches"), False),
        Column("Batch 1 / fit", get("batch_1_ratio")),
    ]
    caption = (
        "Exponent a of noise = c x batch^a: weighted least squares on logarithms, one intercept "
        "per seed, error widened when the points scatter more than their own errors. -1 is "
        "expected where each example is treated alone and the weights are shared; at own weights "
        "the networks differ too. BN at batch 1 is instance norm: it stays out of the fit, and its "
        "noise is given relative to the fit."
    )
    title = "Exponent of the gradient noise"
    return Table("exponents", title, caption, columns, shown, rows, _NO_EXPONENTS)


def _check(rows: list[Row], key: list[str]) -> Table:
    columns = [
        *key,
        *("seed", "epoch", "at_batch", "parameters", "k", "n_examples", "batch_noise"),
        *("lo997", "hi997", "trace", "ratio", "agree"),
    ]
    shown = [
        *key_columns(key),
        Column("Seed", get("seed")),
        Column("Epoch", get("epoch")),
        Column("Measured at batch", get("at_batch")),
        Column("Parameters", get("parameters"), False),
        Column("Batch x noise", get("batch_noise")),
        Column("99.7 % interval", bounds("lo997", "hi997", get)),
        Column("Per-example trace", get("trace")),
        Column("Ratio", fixed("ratio")),
        Column("Agree", get("agree"), False),
    ]
    caption = (
        "Batch x noise against the trace of the per-example gradient covariance, which it equals "
        "for norms that treat each example alone. Agree: the trace lies in the 99.7 % interval, "
        "so about 3 in 1,000 would disagree by chance."
    )
    empty = (
        "No per-example covariance was measured (it exists for norms that treat examples alone)."
    )
    return Table("noise_check", "Noise two ways", caption, columns, shown, rows, empty)


_NO_GRADIENTS = "No gradients were measured: train with gradients=256, for example."
_NO_EXPONENTS = (
    "No exponent can be fitted: gradients were measured at fewer than two batch sizes per norm."
)


def _needs(rows: Sequence[Row]) -> str:
    """Return with how many seeds and test images 'flat' could be shown in this family at all."""
    known = [row for row in rows if row["se_seeds"] == row["se_seeds"]]
    if not known:
        return ""
    sd = statistics.median(row["se_seeds"] * _per_seed(row) for row in known)
    p = statistics.median(row["accuracy_reference"] for row in known)
    seeds, images = equivalence_needs(sd, p, known[0]["family"])
    return (
        f"With this spread (median SD of a seed {percent(sd, 2)} points) it takes at least {seeds} "
        f"seeds in each cell and {images:,} test images, by the conservative bound, to show any "
        "batch size flat. "
    )


def _per_seed(row: Row) -> float:
    return (1 / row["n"] + 1 / row["n_reference"]) ** -0.5


def _diverged(row: Row) -> str:
    total = row["n"] + row["n_diverged"]
    return f"{row['n_diverged']} of {total} diverged" if row["n_diverged"] else "none"


def _weights(row: Row) -> str:
    return row["weights"] + (f" (trained at {row['batch']})" if row["batch"] is not None else "")
