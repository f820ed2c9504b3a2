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
    fixed,
    format_number,
    interval,
    key_columns,
    names,
    number,
    percent,
    points,
    words,
)


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
    both = {row.get("split") for row in rows} == {TEST, VALIDATION}
    accuracy, loss = ("Accuracy", "Loss") if both else ("Test accuracy", "Test loss")
    key = ["norm", "groups", *["channels_per_group"] * per_group, "batch", "update_batch", "lr"]
    shown = [
        words("Run", "run"),
        *key_columns(key),
        number("Seed", "seed"),
        words("Status", "status"),
        *[words("Judged on", "split")] * both,
        number(f"{accuracy}, last epoch (%)", "test_acc", points),
        number(f"{accuracy}, median of last 5 (%)", "test_acc_median5", points),
        number(f"{loss} (nats)", "test_loss"),
        number("Train loss (nats)", "train_loss"),
        number("Epochs", "epochs"),
        number("Images seen", "examples_seen"),
        number("Training time (s)", "train_time_s"),
        words("Execution", "execution"),
        number("Seeds per step", "stack"),
        words("Device", "device"),
    ]
    caption = "Every run and seed. No epoch is selected: the last one is the result."
    return Table("runs", "Runs", caption, columns, shown, rows, "The study holds no run.")


def _accuracy(rows: list[Row], key: list[str]) -> Table:
    return Table(
        "accuracy",
        "Accuracy",
        "Test accuracy of the last epoch: mean over the n seeds that did not diverge, with its "
        "95 % interval (Student's t over seeds; for one seed Wilson's binomial interval over the "
        "test images, which says nothing about other seeds). Over seeds and test images: also for "
        "other test images of the same kind, from which images each seed is right about, or where "
        "that is unknown as if all seeds erred on the same; diverged seeds leave it open.",
        [*key, *names("n n_diverged mean sd lo hi interval lo_images hi_images")],
        [
            *key_columns(key),
            number("Test accuracy (%)", "mean", points),
            interval("95 % interval", "lo", "hi"),
            interval("over seeds and test images", "lo_images", "hi_images"),
            number("SD over seeds", "sd", points),
            number("n", "n"),
            Column("Diverged", _diverged, False),
            words("Interval over", "interval"),
        ],
        rows,
        "No seed is finished yet.",
    )


def _flatness(rows: list[Row], key: list[str], reference: int) -> Table:
    whom = whose_sentence(row["update_batch"] == row["reference_update_batch"] for row in rows)
    also = [words("Also differs", "differs")] * any(row["differs"] for row in rows)
    return Table(
        "flatness",
        "What the batch size costs",
        f"Each batch size against batch {reference}, fixed beforehand. {whom} All rows are one "
        "family ('batch against reference') with Holm's adjustment, and the simultaneous intervals "
        "agree with it. Flat within 1 point: the difference lies inside +-1 point by two one-sided "
        "tests, at 5 % after Holm over all rows (family 'equivalence'); otherwise lower or higher "
        f"when Holm rejects at 5 %. {_needs(rows)}Standard errors as in the table of every norm "
        "against BN. A diverged seed counts at chance.",
        [
            *key,
            *names("reference_batch reference_update_batch n n_reference n_diverged difference"),
            *names("lo90 hi90 lo95 hi95 method se_seeds se_images images dof p_equivalence p"),
            *names("p_holm lo_simultaneous hi_simultaneous family p_equivalence_holm verdict"),
            "differs",
        ],
        [
            *key_columns(key),
            number(f"Accuracy minus that at batch {reference} (points)", "difference", points),
            interval("Simultaneous 95 % interval", "lo_simultaneous", "hi_simultaneous"),
            number("p, Holm", "p_holm"),
            interval("95 % interval alone", "lo95", "hi95"),
            interval("90 % interval alone", "lo90", "hi90"),
            Column("Standard error: seeds, images", sources),
            Column("n", lambda row: f"{row['n']} and {row['n_reference']}"),
            words("Verdict", "verdict"),
            *also,
        ],
        rows,
        f"No norm was trained both at the reference batch {reference} and at another batch size, "
        "so there is nothing to compare.",
    )


def _gradients(rows: list[Row], key: list[str]) -> Table:
    return Table(
        "gradient_variance",
        "Gradient variance",
        "Gradient noise (trace of the covariance of a mini-batch gradient, unbiased) and signal "
        "(squared norm of the expected gradient, unbiased, may be negative), in (loss/parameter)^2:"
        " mean over seeds with 95 % interval (one seed: block jackknife over its draws). Noise "
        "scale is batch x noise / signal; its range combines both intervals and has no upper end "
        "when the signal's reaches 0. Epoch 0 is the initialization.",
        [
            *key,
            *names("epoch at_batch parameters weights n k noise* signal* relative_noise"),
            *names("noise_scale* weight_norm weight_norm2_noise interval"),
        ],
        [
            *key_columns(key),
            number("Epoch", "epoch"),
            number("Measured at batch", "at_batch"),
            words("Parameters", "parameters"),
            number("Noise", "noise"),
            interval("95 % interval", "noise_lo", "noise_hi", format_number),
            number("Signal", "signal"),
            interval("95 % interval", "signal_lo", "signal_hi", format_number),
            number("Noise scale (images)", "noise_scale"),
            interval("Range", "noise_scale_lo", "noise_scale_hi", format_number),
            number("|w|^2 x noise", "weight_norm2_noise"),
            number("Seeds", "n"),
            number("Draws", "k"),
        ],
        rows,
        "No gradients were measured: train with gradients=256, for example.",
    )


def _exponents(rows: list[Row], key: list[str]) -> Table:
    key = [k for k in key if k not in ("batch", "update_batch")]
    return Table(
        "exponents",
        "Exponent of the gradient noise",
        "Exponent a of noise = c x batch^a: weighted least squares on logarithms, one intercept "
        "per seed, error widened when the points scatter more than their own errors. -1 is "
        "expected where each example is treated alone and the weights are shared; at own weights "
        "the networks differ too. BN at batch 1 is instance norm: it stays out of the fit, and its "
        "noise is given relative to the fit.",
        [
            *key,
            *names("weights batch update_batch epoch parameters slope se lo95 hi95 lo997 hi997"),
            *names("dof n_points n_seeds expected at_batches batch_1_ratio"),
        ],
        [
            *key_columns(key),
            Column("Weights", _weights, False),
            number("Epoch", "epoch"),
            words("Parameters", "parameters"),
            number("Exponent", "slope", fixed),
            interval("95 % interval", "lo95", "hi95", fixed),
            interval("99.7 % interval", "lo997", "hi997", fixed),
            number("Expected", "expected"),
            number("Points", "n_points"),
            number("Seeds", "n_seeds"),
            words("At batch", "at_batches"),
            number("Batch 1 / fit", "batch_1_ratio"),
        ],
        rows,
        "No exponent can be fitted: gradients were measured at fewer than two batch sizes per "
        "norm.",
    )


def _check(rows: list[Row], key: list[str]) -> Table:
    return Table(
        "noise_check",
        "Noise two ways",
        "Batch x noise against the trace of the per-example gradient covariance, which it equals "
        "for norms that treat each example alone. Agree: the trace lies in the 99.7 % interval, "
        "so about 3 in 1,000 would disagree by chance.",
        [
            *key,
            *names("seed epoch at_batch parameters k n_examples batch_noise lo997 hi997 trace"),
            *names("ratio agree"),
        ],
        [
            *key_columns(key),
            number("Seed", "seed"),
            number("Epoch", "epoch"),
            number("Measured at batch", "at_batch"),
            words("Parameters", "parameters"),
            number("Batch x noise", "batch_noise"),
            interval("99.7 % interval", "lo997", "hi997", format_number),
            number("Per-example trace", "trace"),
            number("Ratio", "ratio", fixed),
            words("Agree", "agree"),
        ],
        rows,
        "No per-example covariance was measured (it exists for norms that treat examples alone).",
    )


def _needs(rows: Sequence[Row]) -> str:
    """Return with how many seeds and test images 'flat' could be shown in this family at all."""
    known = [row for row in rows if row["se_seeds"] == row["se_seeds"]]
    if not known:
        return ""
    sd = statistics.median(
        row["se_seeds"] * (1 / row["n"] + 1 / row["n_reference"]) ** -0.5 for row in known
    )
    p = statistics.median(row["accuracy_reference"] for row in known)
    seeds, images = equivalence_needs(sd, p, known[0]["family"])
    return (
        f"With this spread (median SD of a seed {percent(sd, 2)} points) it takes at least {seeds} "
        f"seeds in each cell and {images:,} test images, by the conservative bound, to show any "
        "batch size flat. "
    )


def _diverged(row: Row) -> str:
    total = row["n"] + row["n_diverged"]
    return f"{row['n_diverged']} of {total} diverged" if row["n_diverged"] else "none"


def _weights(row: Row) -> str:
    return row["weights"] + (f" (trained at {row['batch']})" if row["batch"] is not None else "")
