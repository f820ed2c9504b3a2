"""The summary of a study: its facts, which templates put into sentences."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gnexp.analysis.batch_vs_update_batch import PRECISE, RUNNING, whose
from gnexp.analysis.cells import Cell, Series, norm_label
from gnexp.analysis.eval_split import VALIDATION, for_split
from gnexp.analysis.gradient_noise import SHARED
from gnexp.analysis.inference import UNTESTED
from gnexp.analysis.leaders import seeds_at_chance
from gnexp.analysis.lr_search import chosen_cell
from gnexp.analysis.statistics import LOWER
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.templates import write
from gnexp.store.lr_choices import BEST

Row = dict[str, Any]
MANY = 6  # series beyond which one sentence each would be a table


def summary(analysis: StudyAnalysis) -> list[str]:
    """Return the facts that support the answer; every one carries its n and its interval.

    What is decided here is decided by the families of comparisons, as in the answer.
    """
    smallest = [_smallest(line, analysis) for line in analysis.series]
    runs = analysis.test_runs
    facts = write(
        "summary.j2",
        MANY=MANY,
        runs=runs,
        counts=Counter(s["status"] for record in runs for s in record.statuses.values()),
        smallest=smallest,
        verdicts=Counter(one["row"]["verdict"] for one in smallest if one["reference"]),
        failing=failing_sentences(analysis) if len(smallest) > MANY else (),
        reference_batch=analysis.reference_batch,
        against_bn=[
            (line, group.bn, pairs[0])
            for group in analysis.comparison_groups
            for line, pairs in group.pairs
            if pairs and pairs[0].difference.verdict != UNTESTED
        ],
        exponents=_last_exponents(analysis.exponents),
        noise_check=analysis.noise_check,
    )
    return [
        *(for_split(fact, analysis.eval_split) for fact in facts),
        *trial_sentences(analysis),
        *decomposition_sentences(analysis.decomposition),
        *two_batches_sentences(analysis.two_batches),
    ]


def _smallest(line: Series, analysis: StudyAnalysis) -> Row:
    """Return the smallest batch of a series and the reference, None where that is the smallest.

    row: of the table of differences, whose decisions are adjusted for all its rows.
    """
    cell = line.cells[0]
    reference = next((c for c in line.cells if c.key["batch"] == analysis.reference_batch), None)
    found = {"label": line.label, "cell": cell, "reference": None}
    if reference in (None, cell):
        return found
    update = reference.key["update_batch"]
    wanted = {**cell.key, "reference_update_batch": update}
    rows = (r for r in analysis.flatness if all(r.get(k) == v for k, v in wanted.items()))
    row = next(rows)
    fixed = row["update_batch"] == update
    return {**found, "reference": reference, "row": row, "whose": whose(fixed, update)}


def _last_exponents(rows: Sequence[Row]) -> list[Row]:
    """Return the exponents over all parameters of the last epoch, at shared weights if known."""
    rows = [r for r in rows if r["parameters"] == "all" and r["lo95"] == r["lo95"]]
    rows = [r for r in rows if r["weights"] == SHARED] or rows
    return [r for r in rows if r["epoch"] == max(r["epoch"] for r in rows)]


def failing_sentences(analysis: StudyAnalysis) -> list[str]:
    """Return who trains at the reference batch, and for each smaller one who fails there.

    A norm fails where it is decidedly below its own accuracy at the reference (the families and
    simultaneous intervals of the table of differences), where a seed diverged, or where the
    accuracy of a seed is not above chance: its Wilson interval over the test images holds 1 / K.
    """
    at: dict[int, dict[str, Cell]] = {}
    for line in analysis.series:
        for cell in line.cells:
            at.setdefault(cell.key["batch"], {})[line.label] = cell
    reference = analysis.reference_batch
    sizes = [_at_size(size, at[size], analysis.flatness) for size in sorted(at) if size < reference]
    trained = at.get(reference, {})
    facts = {"trained": len(trained), "lost": _lost(trained), "reference": reference}
    return write("failing_norms.j2", **facts, sizes=sizes)


def _at_size(size: int, here: Mapping[str, Cell], rows: Sequence[Row]) -> Row:
    lower = []
    for label, cell in here.items():
        row = next((r for r in rows if all(r.get(k) == v for k, v in cell.key.items())), None)
        if row and row["verdict"] == LOWER:
            lower.append((label, row))
    lower.sort(key=lambda found: (found[1]["difference"], found[0]))
    counts = sorted({(row["n"], row["n_reference"]) for _, row in lower})
    return {"batch": size, "n": len(here), "lower": lower, "counts": counts, "lost": _lost(here)}


def _lost(here: Mapping[str, Cell]) -> list[tuple[str, str]]:
    """Return (series, how many of its seeds diverged or are not above chance) where any are."""
    found = []
    for label, cell in here.items():
        lost = {"diverged": cell.diverged, "at chance": seeds_at_chance(cell)}
        every = cell.diverged + len(cell.accuracies)
        if any(lost.values()):
            texts = [f"{n} of {every} {what}" for what, n in lost.items() if n]
            found.append((label, ", ".join(texts)))
    return found


def trial_sentences(analysis: StudyAnalysis) -> list[str]:
    """Return the sentences on a study's trials; empty where it has none."""
    tuned = analysis.tuned
    in_part = [each for each in tuned if each.choice.budget]
    untuned = {norm_label(c.key) for c in analysis.cells if not c.key.get("tuned", True)}
    return write(
        "lr_search.j2",
        validation=analysis.eval_split == VALIDATION,
        cells=len(tuned),
        trainings=sum(len(cell.scored) for each in tuned for cell in each.trials.values()),
        part_budget=len(in_part),
        budgets=sorted({tuple(each.trial_columns.values()) for each in in_part}),
        by_rule=sum(each.choice.rule != BEST for each in tuned),
        at_edge=sum(each.at_edge for each in tuned),
        waiting=sum(chosen_cell(analysis.test_cells, each) is None for each in tuned),
        untuned=sorted(untuned),
    )


def decomposition_sentences(rows: Sequence[Row]) -> list[str]:
    """Return, per series, how the accuracy lost at its smallest batch splits; rows of ACCURACY.

    A batch of 1 that stands apart is followed by the next batch size.
    """
    split: dict[str, list[Row]] = {}
    for row in rows:
        if row["n_shared"] and row["batch"] < row["reference_batch"]:
            split.setdefault(row["series"], []).append(row)
    shown = [row for here in split.values() for row in here[: 2 if here[0]["apart"] else 1]]
    return write("decomposition.j2", rows=shown if len(split) <= MANY else ())


def two_batches_sentences(rows: Sequence[Row]) -> list[str]:
    """Return one sentence per norm: how its fall at the smallest batch splits."""
    running = {row["series"]: row for row in reversed(rows) if row["statistics"] == RUNNING}
    precise = {(r["series"], r["batch"]): r for r in rows if r["statistics"] == PRECISE}
    shown = [(row, precise.get((name, row["batch"]))) for name, row in running.items()]
    return write("two_batches.j2", rows=shown[::-1])
