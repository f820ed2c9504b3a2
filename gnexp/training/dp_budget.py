"""The privacy budget of DP-SGD, by Opacus' accountant of Renyi differential privacy (RDP).

Neighbouring data sets differ in one image that is added or removed: the noise is scaled to `clip`,
by which one image's presence moves a sum (a replaced one moves it by twice as much). The accountant
composes the Gaussian mechanism under Poisson sampling at a fixed rate: its bounds hold for any
number of updates, without the discretization of tighter ones. Source: Mironov et al. 2019,
arXiv:1908.10530.
"""

import functools
import warnings
from dataclasses import dataclass

from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier

ACCOUNTANT = "rdp"
# That the best order is the first or last: the bound holds, if it is not the tightest.
_QUIET = ("ignore", "Optimal order is the")
# Any set of orders gives a valid bound. Opacus' own end at 63, where no epsilon below about 0.05
# can be reached; binomials of the accountant overflow beyond 1024.
ORDERS = (*RDPAccountant.DEFAULT_ALPHAS, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024)

LEAST_TOLERANCE = 1e-6  # of epsilon: below the rounding of the accountant the search never ends


@dataclass(frozen=True)
class Budget:
    """The budget of one training: (epsilon, delta) over `updates` at a Poisson sampling rate."""

    epsilon: float
    delta: float
    sampling_rate: float
    updates: int

    @functools.lru_cache(maxsize=256)  # noqa: B019  budgets are small, and asked for again
    def noise_multiplier(self) -> float:
        """Return the noise's standard deviation over the clipping norm that keeps to the budget.

        The smallest one, to a thousandth of epsilon. Raises ValueError when there is none.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings(*_QUIET)
            return get_noise_multiplier(
                target_epsilon=self.epsilon,
                target_delta=self.delta,
                sample_rate=self.sampling_rate,
                steps=self.updates,
                accountant=ACCOUNTANT,
                epsilon_tolerance=max(self.epsilon / 1000, LEAST_TOLERANCE),
                alphas=list(ORDERS),
            )

    def spent(self, updates: int) -> float:
        """Return the epsilon that so many updates of this training cost at `delta`."""
        if not updates:
            return 0.0
        accountant = RDPAccountant()
        accountant.history = [(self.noise_multiplier(), self.sampling_rate, updates)]
        with warnings.catch_warnings():
            warnings.filterwarnings(*_QUIET)
            epsilon = accountant.get_epsilon(self.delta, alphas=list(ORDERS))
        return max(0.0, epsilon)  # where delta alone would do, the bound falls below 0
