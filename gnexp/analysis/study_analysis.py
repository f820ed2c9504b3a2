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
from gnexp.analysis.leaders import MARGIN, places
from gnexp.analysis.lr_search import (
    TunedCell,
    at_chosen_lr,
    choice_rows,
    test_runs,
    tuned_cells,
    tuning_rows,
)
from gnexp.analysis.run_history import seconds_per_1000, training_curves
from gnexp.store.study import Record, Study

Row = dict[str, Any]


@dataclass
class StudyAnalysis:
    """A study's cells and series, and all rows, comparisons and verdicts made from them.

    tuned: the cells whose learning rate was chosen. test_cells: the cells judged on test images, at
    every rate. cells: those that are compared, of a tuned one the cell at its chosen rate alone.
    margin: the accuracy, 0..1, beyond which a lead counts. A part is computed when first read.
    """

    study: Study
    tuned: Sequence[TunedCell]
    test_cells: Sequence[Cell]
    cells: Sequence[Cell]
    series: Sequence[Series]
    reference_batch: int = 32
    margin: float = MARGIN

    eval_split = cached_property(lambda self: split_of(self.study))
    test_runs = cached_property(lambda self: test_runs(self.study))
    comparison_groups = cached_property(lambda self: settings(self.series))
    # {id(cell): Sample}; a cell of several comparison groups is as the first group has it.
    samples = cached_property(lambda self: all_samples(self.comparison_groups))
    # The verdicts at each batch size, for each of the comparison groups.
    leaders = cached_property(
        lambda self: [places(group, self.margin) for group in self.comparison_groups]
    )
    # Rows of the tables of these names.
    runs = cached_property(lambda self: run_rows(self.study.runs))
    accuracy = cached_property(lambda self: accuracy_rows(self.cells, self.samples))
    flatness = cached_property(
        lambda self: flatness_rows(self.series, self.comparison_groups, self.reference_batch)
    )
    norm_comparisons = cached_property(lambda self: norm_rows(self.comparison_groups))
    norm_pairs = cached_property(lambda self: pair_rows(self.comparison_groups))
    break_even = cached_property(lambda self: break_even_rows(self.comparison_groups))
    robustness = cached_property(
        lambda self: loss_rows(self.series, self.comparison_groups, self.reference_batch)
    )
    gradient_variance = cached_property(lambda self: gradient_rows(self.cells))
    exponents = cached_property(lambda self: exponent_rows(self.cells, self.series))
    noise_check = cached_property(lambda self: check_rows(self.cells))
    two_batches = cached_property(lambda self: two_batches_rows(self.series))
    decomposition = cached_property(
        lambda self: decomposition_rows(self.series, self.reference_batch, ACCURACY)
    )
    decomposition_loss = cached_property(
        lambda self: decomposition_rows(self.series, self.reference_batch, LOSS)
    )
    shift = cached_property(lambda self: condition_rows(self.cells))
    shift_summary = cached_property(lambda self: summary_rows(self.cells))
    classes = cached_property(lambda self: class_rows(self.cells))
    batches = cached_property(lambda self: batch_rows(self.cells))
    tuning = cached_property(lambda self: tuning_rows(self.tuned))
    chosen_rates = cached_property(
        lambda self: choice_rows(self.tuned, self.test_cells, self.tuning)
    )
    # By id(cell): rise of the error by corruption; training curves; seconds per 1,000 images.
    corruption_rises = cached_property(lambda self: corruption_rises(self.cells))
    curves = cached_property(lambda self: training_curves(self.cells))
    seconds_per_1000 = cached_property(lambda self: seconds_per_1000(self.cells))

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
    def reported_runs(self) -> list[Record]:
        """The runs that tables compare: no trials, and no rates that were not chosen."""
        if not self.tuned:
            return self.test_runs
        return [record for cell in self.cells for record in cell.records]

    def of_series(self, kept: Sequence[Series]) -> "StudyAnalysis":
        """Return the analysis of some of the series, for figures."""
        names = {cell.record.name for line in kept for cell in line.cells}
        own = [cell for cell in self.cells if cell.record.name in names]
        return replace(self, cells=own, series=kept)


def study_analysis(
    study: Study, reference_batch: int = 32, margin: float = MARGIN
) -> StudyAnalysis:
    """Return the analysis of a study as it is now."""
    keys = varying(study.runs)
    tuned, test_cells = tuned_cells(study, keys), cells(test_runs(study), keys)
    compared = at_chosen_lr(test_cells, tuned)
    found = series(compared)
    return StudyAnalysis(study, tuned, test_cells, compared, found, reference_batch, margin)
