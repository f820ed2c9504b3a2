"""The noise that differential privacy needs, from an accountant that is installed on demand.

What was read in dp-accounting 0.6.0, and what follows:

`rdp/rdp_privacy_accountant.py` takes under `NeighboringRelation.REPLACE_ONE` a
`SampledWithoutReplacementDpEvent`: a batch of fixed size, drawn uniformly. Its bound is Theorem 27
of Wang, Balle & Kasiviswanathan (arXiv:1808.00087), as `_compute_rdp_sample_wor_gaussian` says,
for "the ratio of the standard deviation of the Gaussian noise to the l2-sensitivity of the
function". The Gaussian it amplifies has the Renyi divergence alpha / (2 sigma^2), which is that of
two normal distributions sigma^-1 standard deviations apart, whatever the neighboring relation. So
sigma counts in sensitivities under *replacement*, 2 clip and not clip, although `GaussianDpEvent`
defines its multiplier as noise over clip; the library's PLD accountant doubles the distance under
REPLACE_ONE by itself, this one does not.

The theorem takes the mechanism on the drawn batch as it is, with a bound on how far replacing one
of the batch's examples moves it. It asks nothing about how the examples of a batch act together,
only that an example that is not drawn has no influence. A norm that pools over the batch satisfies
this too: in train mode it sees the batch alone. A layer whose output depends on earlier batches
does not, and nothing here may be used for it. Nor is anything said of state that is kept beside
the weights without noise, such as running statistics.
"""

import functools

INSTALL = "pip install 'gnexp[dp]'"
# Any choice of orders gives a valid bound; the best one is 3 to 40 in the range of use.
ORDERS = (*range(2, 17), 20, 24, 28, 32, 40, 48, 64)
RELATIVE_PRECISION = 1e-4


@functools.lru_cache
def noise_multiplier(epsilon: float, delta: float, examples: int, batch: int, steps: int) -> float:
    """Return the noise that makes `steps` steps (epsilon, delta)-private, over a sensitivity.

    That is a proven upper bound of the sensitivity under replacement: a found move is none.
    Each step adds Gaussian noise to a function of `batch` of `examples` examples, drawn without
    replacement; neighbors differ in one example, replaced. The result suffices, and is at most
    1e-4 (relative) above the least that this accountant lets suffice. Raises ImportError when
    dp-accounting is not installed.
    """
    low = high = 1.0
    while epsilon_spent(high, delta, examples, batch, steps) > epsilon:
        high *= 2
    while epsilon_spent(low, delta, examples, batch, steps) <= epsilon:
        low /= 2
    while high > low * (1 + RELATIVE_PRECISION):
        middle = (low * high) ** 0.5
        if epsilon_spent(middle, delta, examples, batch, steps) <= epsilon:
            high = middle
        else:
            low = middle
    return high


def epsilon_spent(multiplier: float, delta: float, examples: int, batch: int, steps: int) -> float:
    """Return the epsilon at `delta` that noise of this multiplier proves; see noise_multiplier."""
    from dp_accounting import (
        GaussianDpEvent,
        NeighboringRelation,
        SampledWithoutReplacementDpEvent,
    )
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_ONE)
    step = SampledWithoutReplacementDpEvent(examples, batch, GaussianDpEvent(multiplier))
    return float(accountant.compose(step, steps).get_epsilon(delta))
