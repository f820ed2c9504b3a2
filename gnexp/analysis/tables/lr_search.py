"""The tables of learning rates: which one every cell was given, and what each was worth."""

from collections.abc import Sequence

from gnexp.analysis.cells import BASE
from gnexp.analysis.lr_search import octaves
from gnexp.analysis.tables.table import (
    Column,
    Row,
    Table,
    bounds,
    format_number,
    key_columns,
    names,
    number,
    percent,
    points,
)
from gnexp.store.lr_choices import BEST

LR_TABLES = ("chosen_rates", "tuning")
_UNTOLD = "No learning rate was tuned: train with lr=tuned."


def tuning_tables(chosen: Sequence[Row], tried: Sequence[Row]) -> list[Table]:
    """Return the tables of LR_TABLES; without a tuned cell they have no row and a reason."""
    key = list(chosen[0])[: list(chosen[0]).index("lr")] if chosen else list(BASE)
    if all(row["channels_per_group"] is None for row in chosen):
        key.remove("channels_per_group")
    return [_chosen_table(chosen, key), _tuning_table(tried, key)]


def _chosen_table(rows: Sequence[Row], key: list[str]) -> Table:
    by_rule = any(row["rule"] != BEST for row in rows)
    return Table(
        "chosen_rates",
        "Learning rates chosen",
        "Every cell's learning rate (times update batch / 128), chosen by the last epoch's accuracy"
        " on images held out of the training set, over the tuning seeds and never on test images; "
        "test accuracies are of other seeds, trained on the whole set. Edge: the smallest or "
        "largest rate tried was the best or the chosen one. Good rates: accuracy within 2 points "
        "of the best, linear in log2 of the rate between those tried. A region that reaches the "
        "last rate tried may go on: <= and >= mark that end, and its octaves are a lower bound. "
        "Gained: tuned minus untuned, paired over seeds, with 95 % interval. A diverged seed counts"
        " at chance."
        f"{_RULES * by_rule} A trial's budget and a run's: epochs x images of an epoch.",
        [
            *(*key, *names("lr rates at_edge good_lo good_hi good_octaves good_open rule")),
            *names("trial_epochs trial_images run_epochs run_images n_tuning validation* n_test"),
            *names("test* untuned_lr n_untuned untuned* n_gap gap*"),
        ],
        [
            *key_columns(key),
            Column("Chosen rate", lambda r: format_number(r["lr"]) + " (edge)" * r["at_edge"]),
            number("Rates tried", "rates"),
            Column("Good rates", _good),
            Column("Octaves", lambda r: octaves(r["good_octaves"], r["good_open"])),
            *[Column("Rule", lambda r: r["rule"])] * by_rule,
            Column("Trial's budget", lambda r: _budget(r, "trial")),
            Column("Run's budget", lambda r: _budget(r, "run")),
            _measured("Validation accuracy (%)", "validation"),
            _measured("Test accuracy, tuned (%)", "test"),
            Column("n", lambda r: format_number(r["n_test"] or None)),
            _measured("Test accuracy, untuned (%)", "untuned"),
            number("Untuned rate", "untuned_lr"),
            Column("Gained by tuning (points)", _gained),
        ],
        rows,
        _UNTOLD,
    )


def _tuning_table(rows: Sequence[Row], key: list[str]) -> Table:
    return Table(
        "tuning",
        "Accuracy by learning rate",
        "Accuracy on images held out of the training set at every rate tried, after the trial's "
        "budget (epochs x images of an epoch), mean over the tuning seeds with 95 % t interval, "
        "from the standard deviation that a cell's rates have in common; a diverged seed counts at "
        "chance. The interval is not adjusted for choosing the best, which flatters the chosen "
        "rate here, but not on the test images.",
        [
            *(*key, *names("lr trial_epochs trial_images n n_diverged mean sd lo hi chosen")),
            "at_edge",
        ],
        [
            *key_columns(key),
            number("Learning rate", "lr"),
            Column("Trial's budget", lambda r: _budget(r, "trial")),
            number("Validation accuracy (%)", "mean", points),
            Column("95 % interval", lambda r: bounds(r["lo"], r["hi"], percent)),
            number("n", "n"),
            number("Diverged", "n_diverged"),
            Column("Chosen", lambda r: "yes" if r["chosen"] else "", False),
        ],
        rows,
        _UNTOLD,
    )


_RULES = (
    " Rule best: the rate with the best mean; one_se: the smallest rate whose mean is within one "
    "standard error of the best mean, the deviation pooled over the cell's rates."
)


def _budget(row: Row, of: str) -> str:
    epochs, images = row[f"{of}_epochs"], row[f"{of}_images"]
    return f"{epochs} x {images:,}" if epochs else ""


def _good(row: Row) -> str:
    lo = "<= " if row["good_open"] in ("lo", "both") else ""
    hi = ">= " if row["good_open"] in ("hi", "both") else ""
    return f"{lo}{format_number(row['good_lo'], 2)} to {hi}{format_number(row['good_hi'], 2)}"


def _measured(header: str, name: str) -> Column:
    return Column(header, lambda row: _estimate(row, name))


def _gained(row: Row) -> str:
    return "same rate" if row["gap"] == 0.0 and not row["n_gap"] else _estimate(row, "gap")


def _estimate(row: Row, name: str) -> str:
    interval = bounds(row[f"{name}_lo"], row[f"{name}_hi"], percent)
    return f"{percent(row[name])} {interval}".strip()
