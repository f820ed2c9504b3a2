"""References of the norms with an activation of their own; see `table`.

Shapes: N examples, C channels, H and W pixels.
"""

import numpy as np


def _larger(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the larger of two by their real parts, so that complex steps pass."""
    return np.where(np.real(a) >= np.real(b), a, b)


def _variance(values: np.ndarray) -> np.ndarray:
    mean = values.sum() / values.size
    return ((values - mean) ** 2).sum() / values.size


def _filter_response_norm(x_NCHW, state, options, training):
    """Singh & Krishnan 2020: nu^2 = mean of x^2, y = gamma x / sqrt(nu^2 + eps) + beta, TLU."""
    y_NCHW = np.empty(x_NCHW.shape, np.result_type(x_NCHW, *state.values()))
    for n, c in np.ndindex(x_NCHW.shape[:2]):
        x = x_NCHW[n, c]
        nu2 = (x * x).sum() / x.size
        y = state["weight"][c] * x / np.sqrt(nu2 + options["eps"]) + state["bias"][c]
        y_NCHW[n, c] = _larger(y, state["tau"][c])
    return y_NCHW, state


def _evonorm_b0(x_NCHW, state, options, training):
    """Liu et al. 2020, table 4; the running variance is unbiased, as timm's."""
    eps, momentum = options["eps"], options["momentum"]
    y_NCHW = np.empty(x_NCHW.shape, np.result_type(x_NCHW, *state.values()))
    running = np.array(state["running_var"], np.result_type(x_NCHW, state["running_var"]))
    count = x_NCHW.size // x_NCHW.shape[1]
    for c in range(x_NCHW.shape[1]):
        x_NHW = x_NCHW[:, c]
        of_batch = _variance(x_NHW) if training else running[c]
        for n, x in enumerate(x_NHW):
            other = state["v"][c] * x + np.sqrt(_variance(x) + eps)
            divisor = _larger(np.sqrt(of_batch + eps), other)
            y_NCHW[n, c] = state["weight"][c] * x / divisor + state["bias"][c]
        if training:
            unbiased = of_batch * count / (count - 1)
            running[c] = (1 - momentum) * running[c] + momentum * unbiased
    return y_NCHW, {**state, "running_var": running}


def _evonorm_s0(x_NCHW, state, options, training):
    """Liu et al. 2020, table 4, with biased variances over consecutive channels as groups."""
    y_NCHW = np.empty(x_NCHW.shape, np.result_type(x_NCHW, *state.values()))
    size = x_NCHW.shape[1] // options["num_groups"]
    for n, c in np.ndindex(x_NCHW.shape[:2]):
        first = c // size * size
        deviation = np.sqrt(_variance(x_NCHW[n, first : first + size]) + options["eps"])
        swish = x_NCHW[n, c] / (1 + np.exp(-state["v"][c] * x_NCHW[n, c]))
        y_NCHW[n, c] = state["weight"][c] * swish / deviation + state["bias"][c]
    return y_NCHW, state


ACTIVATING = {
    "frn": _filter_response_norm,
    "evonorm_b0": _evonorm_b0,
    "evonorm_s0": _evonorm_s0,
}
