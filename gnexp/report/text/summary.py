"""The summary of a study: sentences made from its numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gnexp.analysis.batch_vs_update_batch import whose
from gnexp.analysis.cells import Series
from gnexp.analysis.eval_split import for_split
from gnexp.analysis.gradient_noise import SHARED
from gnexp.analysis.inference import UNTESTED
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.text.decomposition import decomposition_sentences, two_batches_sentences
from gnexp.report.text.failing_norms import failing_sentences
from gnexp.report.text.lr_search import trial_sentences
from gnexp.report.text.sentences import write

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
            if pairs and pairs[0].adjusted.verdict != UNTESTED
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
