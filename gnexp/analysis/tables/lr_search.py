"""The tables of learning rates: which one every cell was given, and what each was worth."""

import math
from collections.abc import Callable, Sequence

from gnexp.analysis.cells import BASE
from gnexp.analysis.lr_search import octaves
from gnexp.analysis.tables.table import Column, Row, Table, format_number, key_columns, percent
from gnexp.store.lr_choices import BEST

LR_TABLES = ("chosen_rates", "tuning")
BUDGETS = ("trial_epochs", "trial_images", "run_epochs", "run_images")


def tuning_tables(chosen: Sequence[Row], tried: Sequence[Row]) -> list[Table]:
    """Return the tables of LR_TABLES; without a tuned cell they have no row and a reason."""
    key = list(chosen[0])[: list(chosen[0]).index("lr")] if chosen else list(BASE)
    if all(row["channels_per_group"] is None for row in chosen):
        key.remove("channels_per_group")
    return [_chosen_table(chosen, key), _tuning_table(tried, key)]


_UNTOLD = "No learning rate was tuned: train with lr=tuned."


def _chosen_table(rows: Sequence[Row], key: list[str]) -> Table:
    columns = [*key, "lr", "rates", "at_edge", "good_lo", "good_hi", "good_octaves", "good_open"]
    columns += ["rule", *BUDGETS]
    for name in ("tuning validation", "test test", "untuned untuned", "gap gap"):
        n, value = name.split()
        columns += ["untuned_lr"] * (value == "untuned")
        columns += [f"n_{n}", value, f"{value}_lo", f"{value}_hi"]
    shown = [
        *key_columns(key),
        Column(
            "Chosen rate", lambda r: format_number(r["lr"]) + (" (edge)" if r["at_edge"] else "")
        ),
        Column("Rates tried", lambda r: format_number(r["rates"])),
        Column("Good rates", _good),
        Column("Octaves", _octaves),
        *_distinguishing_keys(rows),
        Column("Validation accuracy (%)", _measured("validation")),
        Column("Test accuracy, tuned (%)", _measured("test")),
        Column("n", lambda r: format_number(r["n_test"] or None)),
        Column("Test accuracy, untuned (%)", _measured("untuned")),
        Column("Untuned rate", lambda r: format_number(r["untuned_lr"])),
        Column("Gained by tuning (points)", _gained),
    ]
    caption = (
        "Every cell's learning rate (times update batch / 128), chosen by the last epoch's accuracy"
        " on images held out of the training set, over the tuning seeds and never on test images; "
        "test accuracies are of other seeds, trained on the whole set. Edge: the smallest or "
        "largest rate tried was the best or the chosen one. Good rates: accuracy within 2 points "
        "of the best, linear in log2 of the rate between those tried. A region that reaches the "
        "last rate tried may go on: <= and >= mark that end, and its octaves are a lower bound. "
        "Gained: tuned minus untuned, paired over seeds, with 95 % interval. A diverged seed counts"
        " at chance."
    )
    caption += _rules_text(rows) + " A trial's budget and a run's: epochs x images of an epoch."
    title = "Learning rates chosen"
    return Table("chosen_rates", title, caption, columns, shown, rows, _UNTOLD)


def _tuning_table(rows: Sequence[Row], key: list[str]) -> Table:
    columns = [*key, "lr", "trial_epochs", "trial_images", "n", "n_diverged"]
    columns += ["mean", "sd", "lo", "hi", "chosen", "at_edge"]
    shown = [
        *key_columns(key),
        Column("Learning rate", lambda r: format_number(r["lr"])),
        Column("Trial's budget", _trial_budget),
        Column("Validation accuracy (%)", lambda r: percent(r["mean"], 2)),
        Column("95 % interval", _interval("lo", "hi")),
        Column("n", lambda r: format_number(r["n"])),
        Column("Diverged", lambda r: format_number(r["n_diverged"])),
        Column("Chosen", lambda r: "yes" if r["chosen"] else "", False),
    ]
    caption = (
        "Accuracy on images held out of the training set at every rate tried, after the trial's "
        "budget (epochs x images of an epoch), mean over the tuning seeds with 95 % t interval, "
        "from the standard deviation that a cell's rates have in common; a diverged seed counts at "
        "chance. The interval is not adjusted for choosing the best, which flatters the chosen "
        "rate here, but not on the test images."
    )
    return Table("tuning", "Accuracy by learning rate", caption, columns, shown, rows, _UNTOLD)


def _distinguishing_keys(rows: Sequence[Row]) -> list[Column]:
    """Return columns for what is not the same for all, or not the default."""
    rule = Column("Rule", lambda r: r["rule"])
    budgets = [Column("Trial's budget", _trial_budget), Column("Run's budget", _run_budget)]
    return [*[rule] * any(row["rule"] != BEST for row in rows), *budgets]


def _rules_text(rows: Sequence[Row]) -> str:
    if all(row["rule"] == BEST for row in rows):
        return ""
    return (
        " Rule best: the rate with the best mean; one_se: the smallest rate whose mean is within "
        "one standard error of the best mean, the deviation pooled over the cell's rates."
    )


def _trial_budget(row: Row) -> str:
    return f"{row['trial_epochs']} x {row['trial_images']:,}"


def _run_budget(row: Row) -> str:
    return f"{row['run_epochs']} x {row['run_images']:,}" if row["run_epochs"] else ""


def _good(row: Row) -> str:
    lo = "<= " if row["good_open"] in ("lo", "both") else ""
    hi = ">= " if row["good_open"] in ("hi", "both") else ""
    return f"{lo}{format_number(row['good_lo'], 2)} to {hi}{format_number(row['good_hi'], 2)}"


def _octaves(row: Row) -> str:
    return octaves(row["good_octaves"], row["good_open"])


def _measured(name: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        interval = _interval(f"{name}_lo", f"{name}_hi")(row)
        return f"{percent(row[name], 1)} {interval}".strip()

    return text


def _gained(row: Row) -> str:
    if row["gap"] == 0.0 and not row["n_gap"]:
        return "same rate"
    return f"{percent(row['gap'], 1)} {_interval('gap_lo', 'gap_hi')(row)}".strip()


def _interval(lo: str, hi: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        if not (math.isfinite(row[lo]) and math.isfinite(row[hi])):
            return ""
        return f"[{percent(row[lo], 1)}, {percent(row[hi], 1)}]"

    return text
