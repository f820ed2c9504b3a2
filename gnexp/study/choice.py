"""Which learning rate a cell is given: the rule, alone, for training and for the report."""

from collections.abc import Collection, Mapping, Sequence


def best_rate(scores: Mapping[float, Sequence[float]], diverged: Collection[float] = ()) -> float:
    """Return the rate with the highest mean accuracy, the smallest of those that share it.

    scores: {rate: accuracies on images held out of training}, at least one each, a diverged
    training at chance. diverged: rates at which a training diverged; where others are left none of
    them is chosen, however lucky its other trainings were: who takes the rate wants it to train.
    """
    rates = sorted(rate for rate in scores if rate not in diverged) or sorted(scores)
    return max(rates, key=lambda rate: sum(scores[rate]) / len(scores[rate]))
