"""Normalization in float64 NumPy, written from the formulas.

Slow and plain on purpose: the oracle that every layer is checked against, so it shares no code
with `layers.py`. For each set S of values that share a statistic, with M = |S|:

    mu = 1/M sum x,  var = 1/M sum (x - mu)^2,  xhat = (x - mu) / sigma,  sigma = sqrt(var + eps)
    y = gamma_c xhat + beta_c

Shapes: N examples, C channels, H and W pixels; G groups of C/G consecutive channels.
"""

from collections.abc import Callable, Iterator

import numpy as np

Index = tuple[slice, slice]  # which examples, which channels; always all pixels


def _per_channel_over_the_batch(n: int, c: int, groups: int | None) -> Iterator[Index]:
    for channel in range(c):
        yield slice(0, n), slice(channel, channel + 1)


def _per_example_and_group(n: int, c: int, groups: int | None) -> Iterator[Index]:
    if groups is None or groups < 1 or c % groups:
        raise ValueError(f"groups={groups} does not divide {c} channels")
    m = c // groups
    for example in range(n):
        for g in range(groups):
            yield slice(example, example + 1), slice(g * m, (g + 1) * m)


_SETS: dict[str, Callable[[int, int, int | None], Iterator[Index]]] = {
    "bn": _per_channel_over_the_batch,
    "gn": _per_example_and_group,
    "ln": lambda n, c, groups: _per_example_and_group(n, c, 1),
    "in": lambda n, c, groups: _per_example_and_group(n, c, c),
    "none": lambda n, c, groups: iter(()),
}


def _standardize(
    name: str, x_NCHW: np.ndarray, eps: float, groups: int | None
) -> tuple[np.ndarray, list[tuple[Index, float]]]:
    """Return xhat (N, C, H, W) and, for each set of values, its index and its sigma.

    Values in no set (norm `none`) pass unchanged. Raises KeyError for a name it does not know.
    """
    xhat_NCHW = np.array(x_NCHW, dtype=np.result_type(x_NCHW, np.float64))  # a copy
    sigmas = []
    for index in _SETS[name](x_NCHW.shape[0], x_NCHW.shape[1], groups):
        values = xhat_NCHW[index]
        mu = values.sum() / values.size
        var = ((values - mu) ** 2).sum() / values.size  # biased: divided by M, not M - 1
        sigma = np.sqrt(var + eps)
        xhat_NCHW[index] = (values - mu) / sigma
        sigmas.append((index, sigma))
    return xhat_NCHW, sigmas


def normalize_reference(
    name: str,
    x_NCHW: np.ndarray,
    gamma_C: np.ndarray,
    beta_C: np.ndarray,
    eps: float = 1e-5,
    groups: int | None = None,
) -> np.ndarray:
    """Return y (N, C, H, W) of norm `name` ("bn gn ln in none"), float64, in training mode.

    Complex numbers stay complex: see `oracle`. `groups` is read by gn alone, and must divide C
    (else ValueError). Source of the formulas: Wu & He 2018, arXiv:1803.08494, which states these
    norms in one form.
    """
    xhat_NCHW, _ = _standardize(name, x_NCHW, eps, groups)
    return gamma_C[:, None, None] * xhat_NCHW + beta_C[:, None, None]
