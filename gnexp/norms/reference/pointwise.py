"""References of the norms over the channels of one pixel; see `table`.

Shapes: N examples, C channels, H and W pixels.
"""

import numpy as np


def _per_pixel(function):
    """Return a reference that gives the channels of each pixel, (C,), to a function of them."""

    def reference(x_NCHW, state, options, training):
        y_NCHW = np.empty(x_NCHW.shape, np.result_type(x_NCHW, *state.values()))
        n, _, height, width = x_NCHW.shape
        for i in np.ndindex(n, height, width):
            xhat_C = function(x_NCHW[i[0], :, i[1], i[2]], state, options)
            y_NCHW[i[0], :, i[1], i[2]] = state["weight"] * xhat_C + state["bias"]
        return y_NCHW, state

    return reference


def _layer_norm(x_C, state, options):
    """Ba et al. 2016: mean and biased variance over the channels."""
    mean = x_C.sum() / len(x_C)
    variance = ((x_C - mean) ** 2).sum() / len(x_C)
    return (x_C - mean) / np.sqrt(variance + options["eps"])


def _rms_norm(x_C, state, options):
    """Zhang & Sennrich 2019, equation 4, with eps inside the root."""
    return x_C / np.sqrt((x_C * x_C).sum() / len(x_C) + options["eps"])


def _dynamic_tanh(x_C, state, options):
    """Zhu et al. 2025, equation 1."""
    grown, shrunk = np.exp(state["alpha"] * x_C), np.exp(-state["alpha"] * x_C)
    return (grown - shrunk) / (grown + shrunk)


POINTWISE = {
    "ln2d": _per_pixel(_layer_norm),
    "rms": _per_pixel(_rms_norm),
    "dyt": _per_pixel(_dynamic_tanh),
}
