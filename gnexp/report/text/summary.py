"""The summary of a study: sentences made from its numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gnexp.analysis.batch_vs_update_batch import whose
from gnexp.analysis.cells import Cell, norm_label
from gnexp.analysis.comparisons import ComparisonGroup
from gnexp.analysis.eval_split import for_split
from gnexp.analysis.gradient_noise import SHARED
from gnexp.analysis.inference import UNTESTED
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import percent
from gnexp.report.text.decomposition import decomposition_sentences, two_batches_sentences
from gnexp.report.text.failing_norms import failing_sentences
from gnexp.report.text.lr_search import trial_sentences
from gnexp.store.study import Record

Row = dict[str, Any]
MANY = 6  # series beyond which one sentence each would be a table


def summary(analysis: StudyAnalysis) -> list[str]:
    """Return the facts that support the answer; every one carries its n and its interval.

    What is decided here is decided by the families of comparisons, as in the answer.
    """
    facts = [
        *_counts(analysis.test_runs),
        *_small_batches(analysis),
        *_against_bn(analysis.comparison_groups),
        *_exponents(analysis.exponents),
        *_agreement(analysis.noise_check),
    ]
    return [
        *(for_split(fact, analysis.eval_split) for fact in facts),
        *trial_sentences(analysis),
        *decomposition_sentences(analysis.decomposition),
        *two_batches_sentences(analysis.two_batches),
    ]


def _counts(records: Sequence[Record]) -> list[str]:
    counts = Counter(s["status"] for record in records for s in record.statuses.values())
    order = ("complete", "diverged", "infeasible", "failed", "running", "missing")
    parts = [f"{counts[name]} {name}" for name in order if counts[name]]
    runs, total = len(records), sum(counts.values())
    which = f"{runs} run{'s' * (runs != 1)}, {total} training{'s' * (total != 1)} (seeds)"
    return [f"{which}: {', '.join(parts)}."]


def _small_batches(analysis: StudyAnalysis) -> list[str]:
    """Compare the smallest batch of each series with the reference; in sum if there are many.

    Decisions and intervals are those of the table of differences, adjusted for all its rows.
    """
    sentences, verdicts = [], Counter()
    rows, reference_batch = analysis.flatness, analysis.reference_batch
    for line in analysis.series:
        smallest = line.cells[0]
        reference = next((c for c in line.cells if c.key["batch"] == reference_batch), None)
        if reference in (None, smallest):
            sentences.append(f"{line.label}: {_level(smallest)}.")
            continue
        update = reference.key["update_batch"]
        row = next(r for r in rows if _is_of(r, smallest) and r["reference_update_batch"] == update)
        text = f"{line.label}: {_level(smallest)} against {_level(reference)}"
        if row["method"]:
            whom = whose(row["update_batch"] == update, update)
            text += f"; difference {_points(row)} ({whom}): {row['verdict']}."
        else:
            text += ". Whether they differ takes at least two seeds each."
        sentences.append(text)
        verdicts[row["verdict"]] += 1
    if len(sentences) <= MANY:
        return sentences
    if not verdicts:
        return []
    parts = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
    return [
        *failing_sentences(analysis),
        f"The smallest batch of each of {verdicts.total()} series against batch {reference_batch}: "
        f"{parts} (each with its n and intervals in the table of differences).",
    ]


def _is_of(row: Row, cell: Cell) -> bool:
    return all(row.get(key) == value for key, value in cell.key.items())


def _against_bn(groups: Sequence[ComparisonGroup]) -> list[str]:
    """Give each norm's difference from BN at the smallest batch size that both were trained at."""
    sentences = []
    for setting in groups:
        for line, pairs in setting.pairs:
            if not pairs or pairs[0].adjusted.verdict == UNTESTED:
                continue
            one = pairs[0]
            found = {"difference": one.difference.difference}
            found |= {"lo_simultaneous": one.adjusted.lo, "hi_simultaneous": one.adjusted.hi}
            n = f"{len(one.cell.scored)} and {len(one.other.scored)}"
            sentences.append(
                f"At batch {one.batch}, {line.label} minus {setting.bn.label}: {_points(found)} "
                f"(n = {n}{_scored(one.cell, one.other)}){'; ' * bool(one.note)}{one.note}."
            )
    return sentences if len(sentences) <= MANY else []  # the table has them all


def _exponents(rows: Sequence[Row]) -> list[str]:
    rows = [r for r in rows if r["parameters"] == "all" and r["lo95"] == r["lo95"]]
    shared = [r for r in rows if r["weights"] == SHARED] or rows
    if not shared:
        return []
    last = max(r["epoch"] for r in shared)
    parts = [
        f"{norm_label(r)} {r['slope']:.2f} [{r['lo95']:.2f}, {r['hi95']:.2f}] "
        f"({r['n_seeds']} seed{'s' * (r['n_seeds'] != 1)}, {r['n_points']} points)"
        for r in shared
        if r["epoch"] == last
    ]
    return [
        f"Gradient noise goes as batch^a, measured at "
        f"{shared[0]['weights']} after epoch {last} over all parameters; a and its 95 % interval: "
        f"{'; '.join(parts)}. At -1 the images of a batch contribute independently."
    ]


def _agreement(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    agreed = sum(row["agree"] for row in rows)
    return [
        f"Batch x noise agrees with the per-example covariance in {agreed} of {len(rows)} "
        "comparisons (99.7 % intervals)."
    ]


def _level(cell: Cell) -> str:
    """Return 'A % [lo, hi] at batch B (n = 3)', with diverged seeds counted at chance."""
    interval = cell.scored_mean
    if interval.n == 1 and not cell.of("diverged"):
        interval, _ = cell.accuracy
    lo, hi = max(interval.lo, 0.0), min(interval.hi, 1.0)  # of few seeds, t may leave [0, 1]
    bounds = f" [{percent(lo)}, {percent(hi)}]" if lo == lo else ""
    one = ", interval over test images" if interval.n == 1 and bounds else ""
    return (
        f"{percent(interval.mean)} %{bounds} at batch {cell.key['batch']} "
        f"(n = {interval.n}{one}{_scored(cell)})"
    )


def _scored(*cells: Cell) -> str:
    diverged = sum(len(cell.of("diverged")) for cell in cells)
    return f", {diverged} diverged and counted at chance" if diverged else ""


def _points(row: Row) -> str:
    sign = "+" if row["difference"] > 0 else ""
    points = f"{sign}{percent(row['difference'], 2)} points"
    if row["lo_simultaneous"] != row["lo_simultaneous"]:
        return f"{points}, no interval"
    bounds = f"[{percent(row['lo_simultaneous'], 2)}, {percent(row['hi_simultaneous'], 2)}]"
    return f"{points}, simultaneous 95 % interval {bounds}"
