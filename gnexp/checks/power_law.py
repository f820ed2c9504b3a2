"""Power laws: exponents with their intervals, and the exponent that the article's rule predicts.

The rule under test: the variance of a gradient of gamma or beta is inversely proportional to the
number of values that share a statistic. Its exponent along an axis is therefore minus that of this
number. Shapes: C channels, K draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gnexp.analysis.statistics import fit_exponent, t_quantile
from gnexp.checks.verdicts import inside

TOLERANCE = 0.1  # of an exponent: a tenth of the article's -1
MUCH_LESS = 0.8  # of a variance that is compared with: a fifth less, at the least
LESS = {  # of a statement on such a ratio
    "expected": f"below {MUCH_LESS:g}",
    "tolerance": f"95 % interval of the ratio below {MUCH_LESS:g}",
    "low": 0.0,
    "high": MUCH_LESS,
}
NORMAL = 1.96  # half the width of a normal 95 % interval, in standard errors
DEGENERATE = "a variance is zero or not finite"


@dataclass(frozen=True)
class PowerLaw:
    """A power law: its exponent and 95 % interval, all nan where there is none to fit."""

    exponent: float = math.nan
    lo: float = math.nan
    hi: float = math.nan

    def __str__(self) -> str:
        if not math.isfinite(self.exponent):
            return f"no power law ({DEGENERATE})"
        return f"{self.exponent:.2f} [{self.lo:.2f}, {self.hi:.2f}]"

    def verdict(self, predicted: float) -> str:
        """Return whether the whole interval lies within the tolerance of an exponent."""
        return inside(self.lo, self.hi, predicted - TOLERANCE, predicted + TOLERANCE)


@dataclass(frozen=True)
class Variance:
    """A variance estimated from draws, and its standard error divided by it."""

    value: float
    error: float


def fit(x: Sequence[float], variances: Sequence[Variance]) -> PowerLaw:
    """Return the law variance ~ x^exponent, weighted by the errors."""
    numbers = np.array([(v.value, v.error) for v in variances])
    if len(x) < 3 or not (np.isfinite(numbers) & (numbers > 0)).all():
        return PowerLaw()
    fitted = fit_exponent(x, *numbers.T, [0] * len(x))
    return PowerLaw(fitted.slope, fitted.lo95, fitted.hi95)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the exponent of y ~ x^exponent, every point of one weight; nan where y has no log."""
    if not (np.isfinite(y).all() and (np.asarray(y) > 0).all()):
        return math.nan
    return fit_exponent(x, y, np.ones(len(x)), [0] * len(x)).slope


def widened(error: float, dof: int) -> float:
    """Return a standard error as large as a normal one with the same 95 % interval.

    An error estimated from few draws is itself uncertain, and a fit takes errors for known.
    """
    return error * t_quantile(0.975, dof) / NORMAL


def variance_over_draws(g_KC: Tensor) -> Variance:
    """Return the variance over draws, averaged over channels.

    The error is that of a mean over the K draws, which are independent; channels need not be.
    """
    k = len(g_KC)
    squares_K = (g_KC - g_KC.mean(dim=0)).square().mean(dim=1) * k / (k - 1)
    value = squares_K.mean()
    error = squares_K.std() / k**0.5 / value
    return Variance(value.item(), widened(error.item(), k - 1))


def predicted(x: Sequence[float], values: Sequence[int]) -> float:
    """Return the exponent of 1 / (values per statistic) against x, from first to last point."""
    return -math.log(values[-1] / values[0]) / math.log(x[-1] / x[0]) + 0.0  # no -0


def ratio_text(ratio: float, lo: float, hi: float, why_not: str = DEGENERATE) -> str:
    """Return a ratio and its interval in words, or why it has none."""
    bounded = all(map(math.isfinite, (ratio, lo, hi)))
    return f"ratio {ratio:.3g} [{lo:.3g}, {hi:.3g}]" if bounded else f"no bounded ratio ({why_not})"
