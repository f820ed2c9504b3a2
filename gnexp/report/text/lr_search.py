"""The sentences on how learning rates were chosen."""

from gnexp.analysis.cells import norm_label
from gnexp.analysis.eval_split import VALIDATION
from gnexp.analysis.lr_search import chosen_cell
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.text.sentences import write
from gnexp.store.lr_choices import BEST


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
        budgets=sorted({each.trial_budget for each in in_part}),
        by_rule=sum(each.choice.rule != BEST for each in tuned),
        at_edge=sum(each.at_edge for each in tuned),
        waiting=sum(chosen_cell(analysis.test_cells, each) is None for each in tuned),
        untuned=sorted(untuned),
    )
