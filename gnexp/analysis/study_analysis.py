"""The analysis of one study: everything that a report shows, each part computed once.

Tables, figures, text and page get a StudyAnalysis as an argument and read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gnexp.analysis.accuracy_drop import loss_rows
from gnexp.analysis.article_claims import accuracy_claims, exponent_claims, noisier_claims
from gnexp.analysis.article_shift import contrast_claims, shift_claims
from gnexp.analysis.batch_composition import batch_rows
from gnexp.analysis.batch_vs_update_batch import two_batches_rows
from gnexp.analysis.break_even import break_even_rows
from gnexp.analysis.cells import Cell, Series, cells, run_rows, series, varying
from gnexp.analysis.class_accuracy import class_rows
from gnexp.analysis.comparisons import (
    ComparisonGroup,
    all_samples,
    flatness_rows,
    norm_rows,
    pair_rows,
    settings,
)
from gnexp.analysis.corruption_robustness import condition_rows, corruption_rises, summary_rows
from gnexp.analysis.decomposition import ACCURACY, LOSS, decomposition_rows
from gnexp.analysis.eval_split import split_of
from gnexp.analysis.gradient_noise import check_rows, exponent_rows, gradient_rows
from gnexp.analysis.inference import accuracy_rows
from gnexp.analysis.leaders import MARGIN, BatchVerdict, places
from gnexp.analysis.lr_search import (
    TunedCell,
    at_chosen_lr,
    choice_rows,
    test_runs,
    tuned_cells,
    tuning_rows,
)
from gnexp.analysis.run_history import Curve, seconds_per_1000, training_curves
from gnexp.analysis.samples import Sample
from gnexp.analysis.statistics import Interval
from gnexp.store.study import Record, Study

Row = dict[str, Any]
# Rows that figures draw of cells and series; learning rates are of cells of their own.
_OF_SERIES = ("gradient_variance", "exponents", "decomposition", "shift_summary", "classes")
_OF_SERIES += ("batches", "two_batches")


@dataclass
class StudyAnalysis:
    """A study's cells and series, and all rows, comparisons and verdicts made from them.

    tuned: the cells whose learning rate was chosen. test_cells: the cells judged on test images, at
    every rate. cells: those that are compared, of a tuned one the cell at its chosen rate alone.
    margin: the accuracy, 0..1, beyond which a lead counts. Rows carry the name of their table; a
    property is computed when it is first read.
    """

    study: Study
    tuned: Sequence[TunedCell]
    test_cells: Sequence[Cell]
    cells: Sequence[Cell]
    series: Sequence[Series]
    reference_batch: int = 32
    margin: float = MARGIN

    @cached_property
    def eval_split(self) -> str:
        return split_of(self.study)

    @cached_property
    def test_runs(self) -> list[Record]:
        """The runs judged on test images; where every run is a trial, all runs."""
        return test_runs(self.study)

    @cached_property
    def reported_runs(self) -> list[Record]:
        """The runs that tables compare: no trials, and no rates that were not chosen."""
        if not self.tuned:
            return self.test_runs
        return [record for cell in self.cells for record in cell.records]

    @cached_property
    def comparison_groups(self) -> list[ComparisonGroup]:
        return settings(self.series)

    @cached_property
    def samples(self) -> dict[int, Sample]:
        """{id(cell): Sample}; a cell of several comparison groups is as the first has it."""
        return all_samples(self.comparison_groups)

    @cached_property
    def leaders(self) -> list[list[BatchVerdict]]:
        """The verdicts at each batch size, for each of the comparison groups."""
        return [places(group, self.margin) for group in self.comparison_groups]

    @cached_property
    def runs(self) -> list[Row]:
        return run_rows(self.study.runs)

    @cached_property
    def accuracy(self) -> list[Row]:
        return accuracy_rows(self.cells, self.samples)

    @cached_property
    def flatness(self) -> list[Row]:
        return flatness_rows(self.series, self.comparison_groups, self.reference_batch)

    @cached_property
    def norm_comparisons(self) -> list[Row]:
        return norm_rows(self.comparison_groups)

    @cached_property
    def norm_pairs(self) -> list[Row]:
        return pair_rows(self.comparison_groups)

    @cached_property
    def break_even(self) -> list[Row]:
        return break_even_rows(self.comparison_groups)

    @cached_property
    def robustness(self) -> list[Row]:
        return loss_rows(self.series, self.comparison_groups, self.reference_batch)

    @cached_property
    def gradient_variance(self) -> list[Row]:
        return gradient_rows(self.cells)

    @cached_property
    def exponents(self) -> list[Row]:
        return exponent_rows(self.cells, self.series)

    @cached_property
    def noise_check(self) -> list[Row]:
        return check_rows(self.cells)

    @cached_property
    def two_batches(self) -> list[Row]:
        return two_batches_rows(self.series)

    @cached_property
    def decomposition(self) -> list[Row]:
        return decomposition_rows(self.series, self.reference_batch, ACCURACY)

    @cached_property
    def decomposition_loss(self) -> list[Row]:
        return decomposition_rows(self.series, self.reference_batch, LOSS)

    @cached_property
    def shift(self) -> list[Row]:
        return condition_rows(self.cells)

    @cached_property
    def shift_summary(self) -> list[Row]:
        return summary_rows(self.cells)

    @cached_property
    def classes(self) -> list[Row]:
        return class_rows(self.cells)

    @cached_property
    def batches(self) -> list[Row]:
        return batch_rows(self.cells)

    @cached_property
    def article_claims(self) -> list[Row]:
        of_accuracy = (self.flatness, self.norm_comparisons, self.series, self.samples)
        return [
            *accuracy_claims(*of_accuracy, self.reference_batch),
            *exponent_claims(self.exponents),
            *noisier_claims(self.gradient_variance),
            *shift_claims(self.shift_summary),
            *contrast_claims(self.shift_summary),
        ]

    @cached_property
    def tuning(self) -> list[Row]:
        return tuning_rows(self.tuned)

    @cached_property
    def chosen_rates(self) -> list[Row]:
        return choice_rows(self.tuned, self.test_cells, self.tuning)

    @cached_property
    def corruption_rises(self) -> dict[int, dict[str, Interval]]:
        """{id(cell): {corruption: rise of the error}} of the measured cells."""
        return corruption_rises(self.cells)

    @cached_property
    def curves(self) -> dict[int, dict[str, Curve]]:
        return training_curves(self.cells)

    @cached_property
    def seconds_per_1000(self) -> dict[int, Interval]:
        """{id(cell): seconds of training per 1,000 images and seed}."""
        return seconds_per_1000(self.cells)

    def of_series(self, kept: Sequence[Series]) -> "StudyAnalysis":
        """Return the analysis of some of the series; rows for figures are taken from this one."""
        names = {cell.record.name for line in kept for cell in line.cells}
        own = [cell for cell in self.cells if cell.record.name in names]
        part = replace(self, cells=own, series=kept)
        for name in _OF_SERIES:
            setattr(part, name, _rows_of(own, getattr(self, name)))
        part.tuning, part.chosen_rates = self.tuning, self.chosen_rates
        return part


def study_analysis(
    study: Study, reference_batch: int = 32, margin: float = MARGIN
) -> StudyAnalysis:
    """Return the analysis of a study as it is now."""
    keys = varying(study.runs)
    tuned, test_cells = tuned_cells(study, keys), cells(test_runs(study), keys)
    compared = at_chosen_lr(test_cells, tuned)
    found = series(compared)
    return StudyAnalysis(study, tuned, test_cells, compared, found, reference_batch, margin)


def _rows_of(own: Sequence[Cell], rows: Sequence[Row]) -> list[Row]:
    """Return the rows that belong to the series of these cells."""
    names = [name for name in (own[0].key if own else ()) if name not in ("batch", "update_batch")]
    wanted: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    kept = []
    for row in rows:
        here = tuple(name for name in names if name in row)
        if here not in wanted:
            wanted[here] = {tuple(repr(cell.key.get(name)) for name in here) for cell in own}
        if tuple(repr(row[name]) for name in here) in wanted[here]:
            kept.append(row)
    return kept
