"""The sentences of a comparison of two studies."""

from collections import Counter
from collections.abc import Sequence

from gnexp.analysis.cells import BASE, norm_label
from gnexp.analysis.compare_studies import HIGHER, LOWER, StudyComparison, varies
from gnexp.analysis.eval_split import TEST
from gnexp.analysis.inference import NO_SPREAD, TOO_FEW, UNDECIDED
from gnexp.analysis.tables.compare_studies import key_of
from gnexp.analysis.tables.table import Row
from gnexp.report.text.sentences import write


def warnings(comparison: StudyComparison) -> list[str]:
    """Return what keeps the accuracies of two studies from being of one task, or of test images."""
    tasks = [sorted({(c.test_images, c.classes) for c in s.cells}) for s in comparison.sides]
    splits = [side.eval_split for side in comparison.sides]
    return write(
        "compare_warnings.j2",
        names=comparison.names,
        splits=splits,
        all_test=set(splits) == {TEST},
        tasks=tasks,
        other_tasks=all(tasks) and tasks[0] != tasks[1],
        other_chance={k for _, k in tasks[0]} != {k for _, k in tasks[1]},
    )


def sentences(comparison: StudyComparison) -> list[str]:
    """Return what the comparison found, and what it leaves undecided; never more than it shows."""
    if not comparison.accuracy:
        return []
    (found, second, first), names = comparison.overall, comparison.names
    overall = {"found": found, "first": first, "second": second, "pairs": len(comparison.pairs)}
    overall["lacking"] = [name for name, n in zip(names, (first, second)) if not n]
    too_few = TOO_FEW if min(first, second) < 2 else NO_SPREAD
    return write(
        "compare_studies.j2",
        names=tuple(names),
        overall={**overall, "why": too_few if found.p != found.p else ""},
        accuracy=_decisions(comparison.accuracy),
        costs=_decisions(comparison.costs),
        reference_batch=comparison.sides[0].reference_batch,
    )


def _decisions(rows: Sequence[Row]) -> dict[str, object]:
    """Return the rows by what is decided of them; largest: the largest difference decided.

    cell: that of the largest difference or, where none is decided, of the widest interval, whose
    width is the difference that is not excluded. reasons: why some have no test.
    """
    decided = [row for row in rows if row["verdict"] in (HIGHER, LOWER)]
    undecided = [row for row in rows if row["verdict"] == UNDECIDED]
    untested = [row for row in rows if row["verdict"] not in (HIGHER, LOWER, UNDECIDED)]
    largest = max(decided, key=lambda row: abs(row["difference"]), default=None)
    widest = max(undecided, key=_width, default=None)
    told = largest or widest
    return {
        **{"rows": rows, "decided": decided, "undecided": undecided, "untested": untested},
        "largest": largest,
        "counts": Counter(row["verdict"] for row in decided),
        "width": _width(widest) if widest else 0.0,
        "cell": _cell(told, rows) if told else "",
        "reasons": " or ".join(dict.fromkeys(r["verdict"].partition(": ")[2] for r in untested)),
    }


def _width(row: Row) -> float:
    return max(abs(row["lo_simultaneous"]), abs(row["hi_simultaneous"]))


def _cell(row: Row, rows: Sequence[Row]) -> str:
    texts = [f"{norm_label(row)} at batch {row['batch']}"]
    if row["update_batch"] != row["batch"]:
        texts.append(f"update batch {row['update_batch']}")
    texts += [f"{key} {row[key]}" for key in key_of(rows) if key not in BASE and varies(key, rows)]
    return ", ".join(texts)
