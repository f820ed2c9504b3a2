"""Online normalization in float64 NumPy, forward and backward, example after example.

Backward is a definition of its own, not the slope of forward; see `oracle` for what a reference is.

Shapes: N examples, C channels, H and W pixels.
"""

import numpy as np


def _layer_scales(z_NCHW, eps):
    return np.array([np.sqrt((z**2).sum() / z.size + eps) for z in z_NCHW])


def _normalized(x_NCHW, state, options, training):
    """Return (y (N, C, H, W), sigma (N, C), state afterwards): before affine and layer scaling."""
    mean_C, var_C = state["running_mean"].copy(), state["running_var"].copy()
    a = options["alpha_f"]
    y, sigmas = [], []
    for x_CHW in x_NCHW:
        sigma_C = np.sqrt(var_C + options["eps"])
        y.append((x_CHW - mean_C[:, None, None]) / sigma_C[:, None, None])
        sigmas.append(sigma_C)
        if training:
            m_C = x_CHW.mean(axis=(1, 2))
            v_C = ((x_CHW - m_C[:, None, None]) ** 2).mean(axis=(1, 2))
            var_C = a * var_C + (1 - a) * v_C + a * (1 - a) * (m_C - mean_C) ** 2
            mean_C = a * mean_C + (1 - a) * m_C
    return np.stack(y), np.stack(sigmas), {**state, "running_mean": mean_C, "running_var": var_C}


def online_norm(x_NCHW, state, options, training):
    """Chiley et al. 2019, forward, with layer scaling behind the affine."""
    y_NCHW, _, after = _normalized(x_NCHW, state, options, training)
    z_NCHW = state["weight"][:, None, None] * y_NCHW + state["bias"][:, None, None]
    return z_NCHW / _layer_scales(z_NCHW, options["eps"])[:, None, None, None], after


REFERENCES = {"online": online_norm}
