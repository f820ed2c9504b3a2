"""The sentences on how learning rates were chosen."""

from collections.abc import Sequence

from gnexp.analysis.cells import norm_label
from gnexp.analysis.eval_split import VALIDATION
from gnexp.analysis.lr_search import TunedCell, chosen_cell
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.store.lr_choices import BEST


def trial_sentences(analysis: StudyAnalysis) -> list[str]:
    """Return the sentences on a study's trials; empty where it has none."""
    tuned = analysis.tuned
    if analysis.eval_split == VALIDATION:
        return [
            "Every accuracy here is of images held out of the training set, not of test images."
        ]
    if not tuned:
        return []
    seeds = sum(len(cell.scored) for each in tuned for cell in each.trials.values())
    edge = sum(each.at_edge for each in tuned)
    text = f"; {edge} of them at the edge of the rates tried" if edge else ""
    waiting = sum(chosen_cell(analysis.test_cells, each) is None for each in tuned)
    text += f"; {waiting} have no result at the chosen rate yet" if waiting else ""
    untuned = {norm_label(c.key) for c in analysis.cells if not c.key.get("tuned", True)}
    text += f". The rates of {', '.join(sorted(untuned))} were not tuned" if untuned else ""
    return [
        f"The learning rates of {len(tuned)} cells were chosen by {seeds} trainings on images held"
        f" out of the training set{_budget_text(tuned)}{_rule_text(tuned)}{text}."
    ]


def _rule_text(tuned: Sequence[TunedCell]) -> str:
    """Return how many were chosen by another rule than the best mean, "" without any."""
    some = [each for each in tuned if each.choice.rule != BEST]
    those = "" if len(some) == len(tuned) else f", in {len(some)} of them"
    return f"{those}, as the smallest within one standard error of the best" if some else ""


def _budget_text(tuned: Sequence[TunedCell]) -> str:
    """Return which part of the budget trials had, "" where all had the whole."""
    some = [each for each in tuned if each.choice.budget]
    if not some:
        return ""
    budgets = sorted({each.trial_budget for each in some})
    shown = ", ".join(f"{epochs} epochs of {images:,} images" for epochs, images in budgets)
    those = "" if len(some) == len(tuned) else f", those of {len(some)} cells"
    return f"{those} with a part of the budget ({shown})"
