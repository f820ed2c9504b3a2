"""The report's tables: which columns they have, what people see of them, and what they mean."""

import functools
import statistics
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnexp.analysis.batch_vs_update_batch import TOGETHER, optimizer_is_fixed, whose_sentence
from gnexp.analysis.cells import RUN_COLUMNS, norm_label
from gnexp.analysis.compare_studies import StudyComparison, varies
from gnexp.analysis.compared_keys import BASE
from gnexp.analysis.eval_split import TEST, VALIDATION, table_for_split
from gnexp.analysis.inference import MOST_SEEDS, equivalence_needs
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.columns import column, key_columns
from gnexp.analysis.tables.table import Column, Row, Table, points
from gnexp.store.lr_choices import BEST

WHY_TABLES = ("decomposition", "decomposition_loss", "shift", "shift_summary", "classes", "batches")
LR_TABLES = ("chosen_rates", "tuning")


@functools.cache
def _specs() -> dict[str, dict[str, str]]:
    return tomllib.loads(Path(__file__).with_name("tables.toml").read_text())


def table(
    name: str,
    rows: Sequence[Row],
    key: Sequence[str] = (),
    shown_key: Sequence[Column] | None = None,
    **facts: Any,
) -> Table:
    """Return a table of tables.toml; key: the columns that identify a row, shown_key: as shown.

    facts: what the braces and conditions of the table's texts stand for.
    """
    known = {**_specs()["texts"], **facts}
    spec = {k: text.format_map(known).format_map(known) for k, text in _specs()[name].items()}
    shown = []
    for line in filter(None, spec["shown"].splitlines()):
        line, _, fact = line.partition(" ?")
        if line == "KEY":
            shown += shown_key or key_columns(key, _specs()["headers"])
        elif not fact or facts[fact]:
            shown.append(column(line))
    texts = [" ".join(spec[part].split()) for part in ("title", "caption")]
    return Table(name, *texts, csv_columns(spec["csv"], key), shown, list(rows), spec["empty"])


def csv_columns(text: str, key: Sequence[str]) -> list[str]:
    """Return CSV columns; KEY stands for the key, "rise*" for rise, rise_lo and rise_hi."""
    found = []
    for name in text.split():
        ends = ("", "_lo", "_hi") if name.endswith("*") else ("",)
        found += key if name == "KEY" else [name.rstrip("*") + end for end in ends]
    return found


def build_tables(analysis: StudyAnalysis) -> dict[str, Table]:
    """Return every table of the report by name; a table without data has no row and a reason.

    Columns keep their names (test_acc) where all runs are judged on validation images; what people
    read says so.
    """
    per_group = any(row["channels_per_group"] is not None for row in analysis.runs)
    extras = [k for k in dict.fromkeys(k for c in analysis.cells for k in c.key) if k not in BASE]
    key = [k for k in BASE if per_group or k != "channels_per_group"] + extras
    whole = [k for k in key if k not in ("batch", "update_batch")]
    of_reference = {"reference": analysis.reference_batch}
    of_reference |= {f"from_{batch}": batch != analysis.reference_batch for batch in (1, 2)}
    fixed = (optimizer_is_fixed(cell.key for cell in line.cells) for line in analysis.series)
    flat, summary = analysis.flatness, analysis.shift_summary
    tables = [
        _runs(analysis.runs, per_group),
        table("accuracy", analysis.accuracy, key),
        table(
            *("flatness", flat, key),
            **{"whom": _whose(flat), "needs": _needs(flat), **of_reference},
            differs=any(row["differs"] for row in flat),
        ),
        table("norm_comparisons", analysis.norm_comparisons, key),
        table("norm_pairs", analysis.norm_pairs, key),
        table("break_even", analysis.break_even, whole),
        table(
            *("robustness", analysis.robustness, whole),
            **{"whose": whose_sentence(fixed), "most_seeds": MOST_SEEDS, **of_reference},
        ),
        table("gradient_variance", analysis.gradient_variance, key),
        table("exponents", analysis.exponents, whole),
        table("noise_check", analysis.noise_check, key),
        table("two_batches", analysis.two_batches, key),
        *(
            table(name, rows, key, whom=_whose(rows), **of_reference)
            for name, rows in (
                ("decomposition", analysis.decomposition),
                ("decomposition_loss", analysis.decomposition_loss),
            )
        ),
        table("shift", analysis.shift, key),
        table("shift_summary", summary, key, **_own_corruptions(summary)),
        table("classes", analysis.classes, key),
        table("batches", analysis.batches, key),
    ]
    tables = [table_for_split(each, analysis.eval_split) for each in tables]
    tables += tuning_tables(analysis.chosen_rates, analysis.tuning)
    tables.append(table("article_claims", analysis.article_claims, together=TOGETHER))
    return {each.name: each for each in tables}


def _runs(rows: list[Row], per_group: bool) -> Table:
    columns = [c for c in (rows[0] if rows else RUN_COLUMNS) if per_group or c != _PER_GROUP]
    key = ["norm", "groups", *[_PER_GROUP] * per_group, "batch", "update_batch", "lr"]
    both = {row.get("split") for row in rows} == {TEST, VALIDATION}
    named = {"accuracy": "Accuracy", "loss": "Loss"}
    if not both:
        named = {"accuracy": "Test accuracy", "loss": "Test loss"}
    return table("runs", rows, columns, key_columns(key, _specs()["headers"]), both=both, **named)


_PER_GROUP = "channels_per_group"


def tuning_tables(chosen: Sequence[Row], tried: Sequence[Row]) -> list[Table]:
    """Return the tables of LR_TABLES; without a tuned cell they have no row and a reason."""
    key = list(chosen[0])[: list(chosen[0]).index("lr")] if chosen else list(BASE)
    if all(row[_PER_GROUP] is None for row in chosen):
        key.remove(_PER_GROUP)
    by_rule = any(row["rule"] != BEST for row in chosen)
    rules = f" {_specs()['texts']['rules_told']}" * by_rule
    chosen_table = table("chosen_rates", chosen, key, by_rule=by_rule, rules=rules)
    return [chosen_table, table("tuning", tried, key)]


def _whose(rows: Sequence[Row]) -> str:
    return whose_sentence(row["update_batch"] == row["reference_update_batch"] for row in rows)


def _own_corruptions(rows: Sequence[Row]) -> dict[str, str]:
    """Return the columns of corruptions that are not standard, for CSV and for people."""
    known = rows[0] if rows else ()
    own = [k.removeprefix("n_rise_") for k in known if k.startswith("n_rise_")]
    csv = ("rise_{}*", "share_lost_{}*", "n_rise_{}")
    lines = (
        f"Rise, {name.replace('_', ' ')} (points) | estimate rise_{name} points n_rise_{name}\n"
        f"Share lost, {name.replace('_', ' ')} (%) | estimate share_lost_{name} percent "
        f"n_rise_{name}"
        for name in own
    )
    columns = " ".join(each.format(name) for each in csv for name in own)
    return {"own_csv": columns, "own_shown": "\n".join(lines)}


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
        f"With this spread (median SD of a seed {points(sd)} points) it takes at least {seeds} "
        f"seeds in each cell and {images:,} test images, by the conservative bound, to show any "
        "batch size flat. "
    )


_NOT_KEYS = ("label", "study", "why", "reference_batch")


def comparison_tables(comparison: StudyComparison) -> dict[str, Table]:
    """Return the tables of a comparison by name."""
    names, reference = comparison.names, comparison.sides[0].reference_batch
    facts = {"first": names[0], "second": names[1], "reference": reference}
    tables = [
        _of_cells("comparison", comparison.accuracy, False, facts),
        _of_cells("comparison_cost", comparison.costs, False, facts),
        table("what_differs", comparison.differing, **facts),
        _of_cells("unmatched", comparison.unmatched, True, facts),
    ]
    return {each.name: each for each in tables}


def _of_cells(name: str, rows: Sequence[Row], every: bool, facts: dict[str, object]) -> Table:
    return table(name, rows, key_of(rows), _key_columns(rows, every), **facts)


def key_of(rows: Sequence[Row]) -> list[str]:
    """Return the columns that identify the cell of a row: BASE and the keys that differ."""
    columns = list(rows[0]) if rows else list(BASE)
    key = columns[: columns.index("label")] if "label" in columns else columns
    return [column for column in key if column not in _NOT_KEYS]


def _key_columns(rows: Sequence[Row], every: bool) -> list[Column]:
    """Return what is shown of the key; every: also what is the same in all rows of a norm."""
    update = any(row["update_batch"] != row["batch"] for row in rows)
    others = [
        key
        for key in key_of(rows)
        if key not in BASE
        and (varies(key, rows) or (every and any(row.get(key) is not None for row in rows)))
    ]
    return [
        Column("Norm", norm_label, False),
        column("Batch | number batch"),
        *[column("Update batch | number update_batch")] * update,
        *(column(f"{key} | words {key}") for key in others),
    ]
