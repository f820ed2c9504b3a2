"""What a study found, in sentences made from its numbers; never more than they show."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gnexp.study import noise, statistics
from gnexp.study.cells import Cell, Series, norm_label
from gnexp.study.comparisons import between, flatness_rows
from gnexp.study.rendering import percent
from gnexp.study.store import Study

Row = dict[str, Any]
MANY = 6  # series beyond which one sentence each would be a table


def headline(
    study: Study,
    lines: Sequence[Series],
    reference_batch: int,
    exponents: Sequence[Row],
    checks: Sequence[Row],
) -> list[str]:
    """Return the sentences, most important first; every one carries its n and its interval.

    exponents, checks: the rows of the tables exponents and noise_check.
    """
    return [
        *_counts(study),
        *_small_batches(lines, reference_batch),
        *_against_bn(lines),
        *_exponents(exponents),
        *_agreement(checks),
    ]


def _counts(study: Study) -> list[str]:
    counts = Counter(s["status"] for record in study.runs for s in record.statuses.values())
    order = ("complete", "diverged", "infeasible", "failed", "running", "missing")
    told = [f"{counts[name]} {name}" for name in order if counts[name]]
    runs, total = len(study.runs), sum(counts.values())
    which = f"{runs} run{'s' * (runs != 1)}, {total} training{'s' * (total != 1)} (seeds)"
    return [f"{which}: {', '.join(told)}."]


def _small_batches(lines: Sequence[Series], reference_batch: int) -> list[str]:
    """Compare the smallest batch of each series with the reference; in sum if there are many."""
    sentences, verdicts = [], Counter()
    for line in lines:
        rows = flatness_rows([line], reference_batch)
        if not rows or line.cells[0].key["batch"] == reference_batch:
            sentences.append(f"{line.label}: {_level(line.cells[0])}.")
            continue
        smallest, row = line.cells[0], rows[0]
        reference = next(c for c in line.cells if c.key["batch"] == reference_batch)
        text = f"{line.label}: {_level(smallest)} against {_level(reference)}"
        if row["method"]:
            text += f"; difference {_points(row)}: {row['verdict']}."
        else:
            text += ". Whether they differ takes at least two seeds each."
        sentences.append(text)
        verdicts[row["verdict"]] += 1
    if len(sentences) <= MANY:
        return sentences
    if not verdicts:
        return []
    told = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
    return [
        f"The smallest batch of each of {verdicts.total()} series against batch {reference_batch}: "
        f"{told} (each with its n and intervals in the table of differences)."
    ]


def _against_bn(lines: Sequence[Series]) -> list[str]:
    """Compare each norm with BN at the smallest batch size that both were trained at."""
    sentences = []
    for line in lines:
        for other in (o for o in lines if o.norm == "bn" and line.norm != "bn"):
            if {**line.key, **_NO_GROUPS} != {**other.key, **_NO_GROUPS}:
                continue  # they differ in more than the norm
            pairs = [
                (cell, bn)
                for cell in line.cells
                for bn in other.cells
                if cell.key["batch"] == bn.key["batch"]
            ]
            if not pairs or min(len(c.scored) for c in pairs[0]) < 2:
                continue
            cell, bn = pairs[0]
            result = vars(between(cell, bn))
            sentences.append(
                f"At batch {cell.key['batch']}, {line.label} minus {other.label}: "
                f"{_points(result)} "
                f"(n = {len(cell.scored)} and {len(bn.scored)}{_scored(cell, bn)})."
            )
    return sentences


def _exponents(rows: Sequence[Row]) -> list[str]:
    rows = [r for r in rows if r["parameters"] == "all" and r["lo95"] == r["lo95"]]
    shared = [r for r in rows if r["weights"] == noise.SHARED] or rows
    if not shared:
        return []
    last = max(r["epoch"] for r in shared)
    told = [
        f"{norm_label(r)} {r['slope']:.2f} [{r['lo95']:.2f}, {r['hi95']:.2f}] "
        f"({r['n_seeds']} seed{'s' * (r['n_seeds'] != 1)}, {r['n_points']} points)"
        for r in shared
        if r["epoch"] == last
    ]
    return [
        f"Gradient noise goes as batch^a, measured at "
        f"{shared[0]['weights']} after epoch {last} over all parameters; a and its 95 % interval: "
        f"{'; '.join(told)}. At -1 the images of a batch contribute independently."
    ]


def _agreement(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    agreed = sum(row["agree"] for row in rows)
    return [
        f"Batch x noise agrees with the per-example covariance in {agreed} of {len(rows)} "
        "comparisons (99.7 % intervals)."
    ]


_NO_GROUPS: Row = {"norm": None, "groups": None, "channels_per_group": None}


def _level(cell: Cell) -> str:
    """Return 'A % [lo, hi] at batch B (n = 3)', diverged seeds counted at chance and said so."""
    interval = statistics.t_interval(cell.scored)
    if interval.n == 1 and not cell.of("diverged"):
        interval, _ = cell.accuracy()
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
    bounds = f"[{percent(row['lo95'], 2)}, {percent(row['hi95'], 2)}]"
    return f"{sign}{percent(row['difference'], 2)} points, 95 % interval {bounds}"
