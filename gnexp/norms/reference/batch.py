"""Batch renorm, ghost, synchronized and frozen batch norm in float64 NumPy, from the formulas.

Plain loops over channels and ghost batches; see `oracle` for what a reference is.

Shapes: N examples, C channels, H and W pixels.
"""

import numpy as np


def _moments(values):
    """Return the mean and the biased variance of all values, and how many they are."""
    mean = values.sum() / values.size
    return mean, ((values - mean) ** 2).sum() / values.size, values.size


def _normalized_by_running(x_NCHW, state, options):
    y_NCHW = np.zeros(x_NCHW.shape, dtype=np.result_type(x_NCHW, state["weight"], np.float64))
    for c in range(x_NCHW.shape[1]):
        sigma = np.sqrt(state["running_var"][c] + options["eps"])
        xhat = (x_NCHW[:, c] - state["running_mean"][c]) / sigma
        y_NCHW[:, c] = state["weight"][c] * xhat + state["bias"][c]
    return y_NCHW


def _limits(seen, options):
    """Return rmax and dmax after `seen` examples."""
    if options["total_examples"] is None:
        return options["rmax"], options["dmax"]
    done = seen / options["total_examples"]
    points = [options["warmup"], options["rmax_at"]], [1.0, options["rmax"]]
    rmax = np.interp(done, *points)
    dmax = np.interp(done, [options["warmup"], options["dmax_at"]], [0.0, options["dmax"]])
    return rmax, dmax


def batch_renorm(x_NCHW, state, options, training):
    """Ioffe 2017, Algorithm 1, with sigma from an unbiased running variance.

    r and d are of the real parts: gradients take them for constants.
    """
    if not training:
        return _normalized_by_running(x_NCHW, state, options), state
    rmax, dmax = _limits(int(state["examples_seen"]), options)
    y_NCHW = np.zeros(x_NCHW.shape, dtype=np.result_type(x_NCHW, state["weight"], np.float64))
    mean_C, var_C = state["running_mean"].copy(), state["running_var"].copy()
    for c in range(x_NCHW.shape[1]):
        mu, var, m = _moments(x_NCHW[:, c])
        sigma_b = np.sqrt(var + options["eps"])
        sigma = np.sqrt(state["running_var"][c] + options["eps"])
        r = min(max(sigma_b.real / sigma, 1 / rmax), rmax)
        d = min(max((mu.real - state["running_mean"][c]) / sigma, -dmax), dmax)
        xhat = (x_NCHW[:, c] - mu) / sigma_b * r + d
        y_NCHW[:, c] = state["weight"][c] * xhat + state["bias"][c]
        mean_C[c] += options["momentum"] * (mu.real - mean_C[c])
        var_C[c] += options["momentum"] * (var.real * m / (m - 1) - var_C[c])
    seen = state["examples_seen"] + len(x_NCHW)
    after = {"running_mean": mean_C, "running_var": var_C, "examples_seen": seen}
    return y_NCHW, {**state, **after}


def ghost_batch_norm(x_NCHW, state, options, training):
    """Hoffer et al. 2017, Algorithm 1, with ghost batches in order and unbiased variances."""
    if not training:
        return _normalized_by_running(x_NCHW, state, options), state
    size = options.get("ghost_batch", len(x_NCHW))
    y_NCHW = np.zeros(x_NCHW.shape, dtype=np.result_type(x_NCHW, state["weight"], np.float64))
    mean_C, var_C = state["running_mean"].copy(), state["running_var"].copy()
    batches = state["num_batches_tracked"]
    for first in range(0, len(x_NCHW), size):
        ghost = slice(first, first + size)
        for c in range(x_NCHW.shape[1]):
            mu, var, m = _moments(x_NCHW[ghost, c])
            xhat = (x_NCHW[ghost, c] - mu) / np.sqrt(var + options["eps"])
            y_NCHW[ghost, c] = state["weight"][c] * xhat + state["bias"][c]
            mean_C[c] = (1 - options["momentum"]) * mean_C[c] + options["momentum"] * mu.real
            unbiased = var.real * m / (m - 1)
            var_C[c] = (1 - options["momentum"]) * var_C[c] + options["momentum"] * unbiased
        batches = batches + 1
    after = {"running_mean": mean_C, "running_var": var_C, "num_batches_tracked": batches}
    return y_NCHW, {**state, **after}


def synchronized_batch_norm(x_NCHW, state, options, training):
    """Batch norm of the examples of all processes, which are one batch here: one ghost batch."""
    return ghost_batch_norm(x_NCHW, state, options, training)


def frozen_batch_norm(x_NCHW, state, options, training):
    """An affine of the input, by stored numbers."""
    return _normalized_by_running(x_NCHW, state, options), state


REFERENCES = {
    "brn": batch_renorm,
    "gbn": ghost_batch_norm,
    "syncbn": synchronized_batch_norm,
    "bn_frozen": frozen_batch_norm,
}
