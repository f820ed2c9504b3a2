"""Which learning rate a cell is given: the rule, alone, for training and for the report."""

from collections.abc import Mapping, Sequence


def best_rate(scores: Mapping[float, Sequence[float]]) -> float:
    """Return the rate with the highest mean accuracy, the smallest of those that share it.

    scores: {rate: accuracies on images held out of training}, at least one each, a diverged
    training at chance.
    """
    return max(sorted(scores), key=lambda rate: sum(scores[rate]) / len(scores[rate]))
