"""Power laws: exponents with their intervals, and the exponent that the article's rule predicts.

The rule under test: the variance of a gradient of gamma or beta is inversely proportional to the
number of values that share a statistic. Its exponent along an axis is therefore minus that of this
number. Shapes: C channels, K draws.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gnexp.analysis.statistics import Interval, fit_exponent, t_quantile
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
Variance = tuple[float, float]  # one estimated from draws, and its standard error divided by it


def fit(x: Sequence[float], variances: Sequence[Variance]) -> Interval:
    """Return the exponent of variance ~ x^exponent, weighted by the errors; nan if none fits."""
    numbers = np.array(variances)
    if len(x) < 3 or not (np.isfinite(numbers) & (numbers > 0)).all():
        return Interval(math.nan, math.nan, len(x), math.nan, math.nan)
    fitted = fit_exponent(x, *numbers.T, [0] * len(x))
    return Interval(fitted.slope, fitted.se, len(x), fitted.lo95, fitted.hi95)


def law_text(law: Interval) -> str:
    """Return an exponent and its interval in words."""
    if not math.isfinite(law.mean):
        return f"no power law ({DEGENERATE})"
    return f"{law.mean:.2f} [{law.lo:.2f}, {law.hi:.2f}]"


def law_verdict(law: Interval, predicted: float) -> str:
    """Return whether the whole interval lies within the tolerance of an exponent."""
    return inside(law.lo, law.hi, predicted - TOLERANCE, predicted + TOLERANCE)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the exponent of y ~ x^exponent, every point of one weight; nan where y has no log."""
    if not (np.isfinite(y).all() and (np.asarray(y) > 0).all()):
        return math.nan
    return fit_exponent(x, y, np.ones(len(x)), [0] * len(x)).slope


def variance_over_draws(g_KC: Tensor) -> Variance:
    """Return the variance over draws, averaged over channels.

    The error is that of a mean over the K draws, which are independent; channels need not be. It is
    widened to a normal one with the same 95 % interval, since a fit takes errors for known.
    """
    k = len(g_KC)
    squares_K = (g_KC - g_KC.mean(dim=0)).square().mean(dim=1) * k / (k - 1)
    value = squares_K.mean()
    error = squares_K.std() / k**0.5 / value
    return value.item(), error.item() * t_quantile(0.975, k - 1) / NORMAL


def predicted(x: Sequence[float], values: Sequence[int]) -> float:
    """Return the exponent of 1 / (values per statistic) against x, from first to last point."""
    return -math.log(values[-1] / values[0]) / math.log(x[-1] / x[0]) + 0.0  # no -0


def ratio_text(ratio: float, lo: float, hi: float, why_not: str = DEGENERATE) -> str:
    """Return a ratio and its interval in words, or why it has none."""
    bounded = all(map(math.isfinite, (ratio, lo, hi)))
    return f"ratio {ratio:.3g} [{lo:.3g}, {hi:.3g}]" if bounded else f"no bounded ratio ({why_not})"
