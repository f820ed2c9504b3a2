"""Switchable norm in float64 NumPy, from the definitions of its three norms.

Each mean and variance is taken of the values themselves; see `oracle` for what a reference is.

Shapes: N examples, C channels, H and W pixels.
"""

import numpy as np


def _softmax(weights):
    powers = np.exp(weights)
    return powers / powers.sum()


def _moments(x_NCHW, axes):
    mean = x_NCHW.mean(axis=axes, keepdims=True)
    return mean, ((x_NCHW - mean) ** 2).mean(axis=axes, keepdims=True)


def switchable_norm(x_NCHW, state, options, training):
    """Luo et al. 2018, equations 3 to 5, with an unbiased running variance."""
    kinds = [_moments(x_NCHW, (2, 3)), _moments(x_NCHW, (1, 2, 3))]
    after = dict(state)
    if training:
        mean, var = _moments(x_NCHW, (0, 2, 3))
        kinds.append((mean, var))
        m, momentum = x_NCHW.size // x_NCHW.shape[1], options["momentum"]
        seen = {"running_mean": mean.real.ravel(), "running_var": (var.real * m / (m - 1)).ravel()}
        for key, value in seen.items():
            after[key] = (1 - momentum) * state[key] + momentum * value
        after["num_batches_tracked"] = state["num_batches_tracked"] + 1
    else:
        kinds.append(tuple(state[k][:, None, None] for k in ("running_mean", "running_var")))
    of_mean, of_var = _softmax(state["mean_weight"]), _softmax(state["var_weight"])
    mean = sum(w * mu for w, (mu, _) in zip(of_mean, kinds, strict=True))
    var = sum(w * v for w, (_, v) in zip(of_var, kinds, strict=True))
    xhat_NCHW = (x_NCHW - mean) / np.sqrt(var + options["eps"])
    return state["weight"][:, None, None] * xhat_NCHW + state["bias"][:, None, None], after


REFERENCES = {"switchable": switchable_norm}
