"""The sentences of a comparison of two studies."""

from collections.abc import Sequence

from gnexp.analysis.cells import BASE, norm_label
from gnexp.analysis.compare_studies import HIGHER, LOWER, StudyComparison, varies
from gnexp.analysis.eval_split import TEST, VALIDATION
from gnexp.analysis.inference import NO_SPREAD, TOO_FEW, UNDECIDED
from gnexp.analysis.tables.compare_studies import Names, key_of, signed
from gnexp.analysis.tables.table import Row, percent


def warnings(comparison: StudyComparison) -> list[str]:
    """Return what keeps the accuracies of two studies from being of one task, or of test images."""
    return [*_other_images(comparison), *_other_tasks(comparison)]


def _other_images(comparison: StudyComparison) -> list[str]:
    names, on = comparison.names, [side.eval_split for side in comparison.sides]
    if on == [TEST, TEST]:
        return []
    if on == [VALIDATION, VALIDATION]:
        return [
            "Every accuracy here is of images held out of the training set, not of test images."
        ]
    return [
        f"Accuracies of {names[0]} are of {on[0]} images, those of {names[1]} of {on[1]} images: "
        "their trainings saw other images too."
    ]


def _other_tasks(comparison: StudyComparison) -> list[str]:
    names = comparison.names
    tasks = [sorted({(c.test_images, c.classes) for c in s.cells}) for s in comparison.sides]
    if not all(tasks) or tasks[0] == tasks[1]:
        return []
    texts = [
        f"{' and '.join(f'{n} images of {k} classes' for n, k in task)} in {name}"
        for task, name in zip(tasks, names)
    ]
    unlike = {k for _, k in tasks[0]} != {k for _, k in tasks[1]}
    chance = ", whose chance levels differ" if unlike else ""
    return [
        f"The test sets differ: {texts[0]}, {texts[1]}{chance}. Differences are those of two tasks."
    ]


def sentences(comparison: StudyComparison) -> list[str]:
    """Return what the comparison found, and what it leaves undecided; never more than it shows."""
    rows, names = comparison.accuracy, comparison.names
    if not rows:
        return []
    return [_overall(comparison), _counted(rows, names), *_on_costs(comparison.costs, names)]


def _overall(comparison: StudyComparison) -> str:
    (found, second, first), names = comparison.overall, comparison.names
    pairs = len(comparison.pairs)
    cells = f"the {pairs} cells of both" if pairs > 1 else "the one cell of both"
    lacking = [name for name, n in zip(names, (first, second)) if not n]
    if lacking:
        return f"No seed of {' or of '.join(lacking)} has {cells}, so there is no mean over them."
    n = f"n = {first} seed{'s' * (first != 1)} of {names[0]} and {second} of {names[1]}"
    text = f"{names[1]} minus {names[0]}, mean over {cells}: {signed(found.difference)} points"
    if found.p != found.p:
        why = TOO_FEW if min(first, second) < 2 else NO_SPREAD
        return f"{text} ({n}); no interval: {why}."
    bounds = f"[{percent(found.lo, 2)}, {percent(found.hi, 2)}]"
    return f"{text}, 95 % interval over seeds {bounds} ({n})."


def _counted(rows: Sequence[Row], names: Names) -> str:
    decided, undecided, untested = _by_decision(rows)
    if not decided:
        return _none(rows, ("cell", "compared"), "between the studies")
    largest = max(decided, key=lambda row: abs(row["difference"]))
    if len(rows) == 1:
        of = f"in the one cell compared (Holm, 5 %): {_difference(largest)}"
        return f"{names[1]} is {largest['verdict']} {of}."
    counts = [(v, sum(row["verdict"] == v for row in decided)) for v in (HIGHER, LOWER)]
    texts = " and ".join(f"{verdict} in {n}" for verdict, n in counts if n)
    found = [f"{names[1]} is {texts} (Holm, 5 %)", *_open(undecided, untested)]
    return (
        f"Of {len(rows)} cells compared, {', '.join(found)}; the largest difference is that of "
        f"{_cell(largest, rows)}: {_difference(largest)}."
    )


def _on_costs(rows: Sequence[Row], names: Names) -> list[str]:
    if not rows:
        return []
    reference = rows[0]["reference_batch"]
    decided, undecided, untested = _by_decision(rows)
    if not decided:
        between = f"between {names[0]} and {names[1]}"
        text = _none(rows, ("cost", f"against batch {reference}"), between)
        if undecided:
            widest = max(undecided, key=_width)
            text += (
                f" A difference of up to {percent(_width(widest), 1)} points would not be excluded"
                f" at {_cell(widest, rows)}."
            )
        return [text]
    largest = max(decided, key=lambda row: abs(row["difference"]))
    of = f"{len(decided)} of {len(rows)} comparisons" if len(rows) > 1 else "the one comparison"
    found = [f"differs between the studies in {of} (Holm, 5 %)", *_open(undecided, untested)]
    return [
        f"What a batch costs against batch {reference} {', '.join(found)}; "
        f"{'most ' * (len(decided) > 1)}at {_cell(largest, rows)}: "
        f"{signed(largest['first_cost'])} points in {names[0]}, "
        f"{signed(largest['second_cost'])} in {names[1]}; {_difference(largest)}."
    ]


def _by_decision(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Return the rows that are decided, those that are undecided, and those that have no test."""
    decided = [row for row in rows if row["verdict"] in (HIGHER, LOWER)]
    undecided = [row for row in rows if row["verdict"] == UNDECIDED]
    return decided, undecided, [r for r in rows if r["verdict"] not in (HIGHER, LOWER, UNDECIDED)]


def _open(undecided: Sequence[Row], untested: Sequence[Row]) -> list[str]:
    """Return how many are undecided and how many are not tested, of which there are any."""
    texts = [f"{len(undecided)} {_are(undecided)} undecided"] if undecided else []
    if untested:
        texts.append(f"{len(untested)} {_are(untested)} not tested ({_reasons(untested)})")
    return texts


def _none(rows: Sequence[Row], what: tuple[str, str], between: str) -> str:
    """Return that none of these differ, or that none is tested; what: a noun, and what follows."""
    _, undecided, untested = _by_decision(rows)
    one = len(rows) == 1
    subject = f"The one {' '.join(what)} is" if one else f"Of {len(rows)} {what[0]}s {what[1]}"
    if not undecided:
        return f"{subject}{' not' if one else ', none is'} tested: {_reasons(untested)}."
    shown = f"{' not' if one else ', none is'} shown to differ {between} (Holm, 5 %)"
    parts = f": {', '.join(_open(undecided, untested))}" if untested else ""
    return f"{subject}{shown}{parts}."


def _are(rows: Sequence[Row]) -> str:
    return "is" if len(rows) == 1 else "are"


def _reasons(untested: Sequence[Row]) -> str:
    return " or ".join(dict.fromkeys(row["verdict"].partition(": ")[2] for row in untested))


def _width(row: Row) -> float:
    return max(abs(row["lo_simultaneous"]), abs(row["hi_simultaneous"]))


def _difference(row: Row) -> str:
    n = f"n = {row['first_n']} and {row['second_n']}"
    bounds = f"[{percent(row['lo_simultaneous'], 2)}, {percent(row['hi_simultaneous'], 2)}]"
    return f"{signed(row['difference'])} points, simultaneous 95 % interval {bounds} ({n})"


def _cell(row: Row, rows: Sequence[Row]) -> str:
    texts = [f"{norm_label(row)} at batch {row['batch']}"]
    if row["update_batch"] != row["batch"]:
        texts.append(f"update batch {row['update_batch']}")
    texts += [f"{key} {row[key]}" for key in key_of(rows) if key not in BASE and varies(key, rows)]
    return ", ".join(texts)
