"""Accuracy by norm and batch size, for the page and the terminal."""

from collections.abc import Sequence

from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import percent
from gnexp.report.text.answer import answer


def plain_summary(analysis: StudyAnalysis) -> str:
    """Return the accuracies as aligned text, and the answer under them, a sentence a line."""
    if not analysis.series:
        return "no seed is finished yet"
    return "\n".join([_plain_table(analysis), *answer(analysis)])


def _plain_table(analysis: StudyAnalysis) -> str:
    """Return a row per norm, a column per batch size."""
    batches, rows = accuracy_matrix(analysis.series)
    on = analysis.eval_split
    same = {cell.n for _, row in rows for cell in row if cell}
    alike = len(same) == 1 and not any(cell.diverged for _, row in rows for cell in row if cell)
    table = [["batch", *map(str, batches)]]
    for label, row in rows:
        table.append([label, *(cell.text(with_n=not alike) if cell else "-" for cell in row)])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    text = [
        "  ".join(t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths)))
        for row in table
    ]
    n = f", n = {same.pop()}" if alike else ", (n seeds)"
    single = (
        f"; one seed: interval over {on} images"
        if any(cell.n == 1 for _, row in rows for cell in row if cell)
        else ""
    )
    title = f"{on} accuracy in percent, last epoch, mean +- half of the 95 % interval{n}{single}"
    return "\n".join([title, *text])


class MatrixCell:
    """One accuracy for a norm x batch matrix."""

    def __init__(self, cell: Cell):
        interval, _ = cell.accuracy
        self.n, self.diverged = interval.n, len(cell.of("diverged"))
        self.infeasible = bool(cell.of("infeasible"))
        self.mean = percent(interval.mean)
        half = (interval.hi - interval.lo) / 2
        # Beyond what an accuracy can be a half would be false: both ends are shown instead.
        within = interval.mean - half >= 0 and interval.mean + half <= 1
        self.half = percent(half) if within else ""
        ends = interval.lo == interval.lo and not within
        self.ends = f"[{percent(interval.lo)}, {percent(interval.hi)}]" if ends else ""

    def text(self, with_n: bool = True) -> str:
        """Return '78.3+-0.4 (3)', or what became of the seeds if none survived."""
        if not self.n:
            lost = f"{self.diverged} diverged" if self.diverged else "-"
            return "infeasible" if self.infeasible and not self.diverged else lost
        lost = f", {self.diverged} of {self.n + self.diverged} diverged" if self.diverged else ""
        number = self.mean + (f"+-{self.half}" if self.half else f" {self.ends}" * bool(self.ends))
        return number + (f" ({self.n}{lost})" if with_n or lost else "")


def accuracy_matrix(
    lines: Sequence[Series],
) -> tuple[list[int], list[tuple[str, list[MatrixCell | None]]]]:
    """Return (batch sizes, [(series label, a MatrixCell or None per batch size)])."""
    batches = sorted({cell.key["batch"] for line in lines for cell in line.cells})
    rows = []
    for line in lines:
        by_batch = {cell.key["batch"]: MatrixCell(cell) for cell in line.cells}
        rows.append((line.label, [by_batch.get(batch) for batch in batches]))
    return batches, rows
