"""Spread of a seed's accuracy in each cell, moderated over the cells of a comparable setting.

Three seeds know little of their spread. Cells of one setting (one model, data set and update rule)
share a prior for the variance, fitted to all of them by empirical Bayes on the log variances (Smyth
2004, doi:10.2202/1544-6115.1027), and each cell's variance is shrunk towards it:

    moderated = (w prior + d own) / (w + d),    d = n - 1 degrees of freedom

As published, with w the fitted degrees of freedom d0 and d + d0 in the test, the family-wise error
at three seeds was 7 to 9 % in small grids, 10 to 13 % where spreads differ log-normally and 17 to
19 % where an unannounced cell scatters fourfold. So

- w is at most LARGEST_WEIGHT, and grows with the number of cells that the prior is made from:
  (cells - FEWEST) / CELLS_PER_WEIGHT; with FEWEST cells or fewer nothing is shared, which is Welch;
- the prior counts with CREDIT of its weight as degrees of freedom, since it is itself estimated;
- a cell keeps its own variance where a larger one is known to occur: norms that pool over examples
  at batch 1 and 2 (as `pools` of the run says; a run that does not say counts as pooling), and
  cells with a diverged seed. A cell without any spread takes the prior and gives nothing;
- in a comparison of cells that share a prior or are known to scatter, KEPT is kept of what
  Satterthwaite adds to the smaller of their degrees of freedom: three seeds know little of which
  of two spreads is the larger.

Simulated errors, coverage and power: `python scripts/inference_errors.py`, results/LOG.md.
"""

import numpy as np

from gnexp.analysis.cells import Cell

LARGEST_WEIGHT = 4.0
FEWEST = 6  # cells; a prior from so few misleads more than it helps
CELLS_PER_WEIGHT = 4.0
CREDIT = 0.5
KEPT = 0.7
SCATTERED = 2  # the largest batch at which a norm that pools over examples may scatter


def keeps_own_variance(cell: Cell) -> bool:
    """Return whether the cell is known to be one that may scatter more than the others."""
    pools = cell.record.result.get("pools")
    mixes = pools is None or "n" in pools
    return bool(cell.of("diverged")) or (mixes and cell.key["batch"] <= SCATTERED)


def moderate(
    variance: np.ndarray, dof: np.ndarray, shared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (moderated variances, degrees of freedom) of the cells along the last axis.

    variance: (..., G), any unit; dof: (..., G), positive; shared: (..., G), False for a cell that
    keeps its own. Leading axes are studies. See the module's text.
    """
    from scipy.special import digamma, polygamma

    variance, dof, shared = np.broadcast_arrays(variance, np.asarray(dof, float), shared)
    # Rounding leaves 1e-34 of variance between equal accuracies.
    gives = shared & (variance > 1e-24)
    count = gives.sum(axis=-1, keepdims=True)
    weight = np.clip((count - FEWEST) / CELLS_PER_WEIGHT, 0, LARGEST_WEIGHT)
    many = np.maximum(count, 2)
    e = np.log(np.where(gives, variance, 1.0)) - digamma(dof / 2) + np.log(dof / 2)
    mean = np.where(gives, e, 0).sum(axis=-1, keepdims=True) / many
    scatter = np.where(gives, (e - mean) ** 2, 0).sum(axis=-1, keepdims=True) / (many - 1)
    excess = scatter - np.where(gives, polygamma(1, dof / 2), 0).sum(-1, keepdims=True) / many
    # Equal variances scatter no more than chance has it: excess <= 0, an infinite d0.
    fitted = np.where(excess > 0, 2 * _inverse_trigamma(np.maximum(excess, 1e-6)), np.inf)
    weight = np.where(shared, np.minimum(fitted, weight), 0.0)
    half = np.maximum(weight, 1e-9) / 2
    prior = np.exp(mean + digamma(half) - np.log(half))
    moderated = (weight * prior + dof * np.where(gives, variance, prior)) / (weight + dof)
    return np.where(weight > 0, moderated, variance), dof + CREDIT * weight


def _inverse_trigamma(x: np.ndarray) -> np.ndarray:
    """Return y with trigamma(y) = x > 0, by Newton's method on 1 / trigamma (Smyth 2004)."""
    from scipy.special import polygamma

    y = 0.5 + 1 / x
    for _ in range(20):
        value = polygamma(1, y)
        y = y + value * (1 - value / x) / polygamma(2, y)
    return y
