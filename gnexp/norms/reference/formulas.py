"""The norms in float64 NumPy, written from the formulas of their sources.

Slow and plain on purpose: loops over sets of values that share a statistic. Each function is
(x_NCHW, state, options, training) -> (y_NCHW, state after the pass), see `table`. Variances of a
batch are biased; running variances are unbiased, as in PyTorch.

Shapes: N examples, C channels, H and W pixels.
"""

import numpy as np


def _moments(values):
    """Return the mean and the biased variance of all values."""
    mean = values.sum() / values.size
    return mean, ((values - mean) ** 2).sum() / values.size


def _standardized(values, eps):
    mean, var = _moments(values)
    return (values - mean) / np.sqrt(var + eps)


def _affine(xhat_NCHW, state):
    return state["weight"][:, None, None] * xhat_NCHW + state["bias"][:, None, None]


def _larger(a, b):
    """Return the larger of two by their real parts, so that complex steps pass."""
    return np.where(np.real(a) >= np.real(b), a, b)


def _empty_like(x_NCHW, state):
    return np.empty(x_NCHW.shape, np.result_type(x_NCHW, np.float64, *state.values()))


def _followed(running, seen, options):
    """Return a running statistic after a batch; the gradient does not pass through it."""
    return (1 - options["momentum"]) * running + options["momentum"] * np.real(seen)


def group_norm(x_NCHW, state, options, training):
    """Wu & He 2018: each example within G groups of consecutive channels."""
    groups, channels = options["num_groups"], x_NCHW.shape[1]
    if not groups or groups < 1 or channels % groups:
        raise ValueError(f"groups={groups} does not divide {channels} channels")
    xhat_NCHW, size = _empty_like(x_NCHW, state), channels // groups
    for n, g in np.ndindex(len(x_NCHW), groups):
        at = n, slice(g * size, (g + 1) * size)
        xhat_NCHW[at] = _standardized(x_NCHW[at], options["eps"])
    return _affine(xhat_NCHW, state), state


def layer_norm(x_NCHW, state, options, training):
    """Ba et al. 2016, as group norm with one group."""
    return group_norm(x_NCHW, state, {**options, "num_groups": 1}, training)


def instance_norm(x_NCHW, state, options, training):
    """Ulyanov et al. 2016, as group norm with as many groups as channels."""
    return group_norm(x_NCHW, state, {**options, "num_groups": x_NCHW.shape[1]}, training)


def no_norm(x_NCHW, state, options, training):
    """Gamma and beta, and no statistic."""
    return _affine(x_NCHW, state), state


def _per_pixel(function):
    """Return a reference that gives the channels of each pixel, (C,), to a function of them."""

    def reference(x_NCHW, state, options, training):
        xhat_NCHW = _empty_like(x_NCHW, state)
        n, _, height, width = x_NCHW.shape
        for i, row, column in np.ndindex(n, height, width):
            xhat_NCHW[i, :, row, column] = function(x_NCHW[i, :, row, column], state, options)
        return _affine(xhat_NCHW, state), state

    return reference


@_per_pixel
def pixel_layer_norm(x_C, state, options):
    """Ba et al. 2016: mean and biased variance over the channels."""
    return _standardized(x_C, options["eps"])


@_per_pixel
def rms_norm(x_C, state, options):
    """Zhang & Sennrich 2019, equation 4, with eps inside the root."""
    return x_C / np.sqrt((x_C * x_C).sum() / len(x_C) + options["eps"])


@_per_pixel
def dynamic_tanh(x_C, state, options):
    """Zhu et al. 2025, equation 1."""
    grown, shrunk = np.exp(state["alpha"] * x_C), np.exp(-state["alpha"] * x_C)
    return (grown - shrunk) / (grown + shrunk)


def filter_response_norm(x_NCHW, state, options, training):
    """Singh & Krishnan 2020: nu^2 = mean of x^2, y = gamma x / sqrt(nu^2 + eps) + beta, TLU."""
    xhat_NCHW = _empty_like(x_NCHW, state)
    for at in np.ndindex(x_NCHW.shape[:2]):
        x = x_NCHW[at]
        xhat_NCHW[at] = x / np.sqrt((x * x).sum() / x.size + options["eps"])
    return _larger(_affine(xhat_NCHW, state), state["tau"][:, None, None]), state


def evonorm_b0(x_NCHW, state, options, training):
    """Liu et al. 2020, table 4; the running variance is unbiased, as timm's."""
    xhat_NCHW, running = _empty_like(x_NCHW, state), np.array(state["running_var"])
    count = x_NCHW.size // x_NCHW.shape[1]
    for c in range(x_NCHW.shape[1]):
        of_batch = _moments(x_NCHW[:, c])[1] if training else running[c]
        for n, x in enumerate(x_NCHW[:, c]):
            other = state["v"][c] * x + np.sqrt(_moments(x)[1] + options["eps"])
            xhat_NCHW[n, c] = x / _larger(np.sqrt(of_batch + options["eps"]), other)
        if training:
            running[c] = _followed(running[c], of_batch * count / (count - 1), options)
    return _affine(xhat_NCHW, state), {**state, "running_var": running}


def evonorm_s0(x_NCHW, state, options, training):
    """Liu et al. 2020, table 4, with biased variances over consecutive channels as groups."""
    xhat_NCHW, size = _empty_like(x_NCHW, state), x_NCHW.shape[1] // options["num_groups"]
    for n, c in np.ndindex(x_NCHW.shape[:2]):
        first = c // size * size
        deviation = np.sqrt(_moments(x_NCHW[n, first : first + size])[1] + options["eps"])
        swish = x_NCHW[n, c] / (1 + np.exp(-state["v"][c] * x_NCHW[n, c]))
        xhat_NCHW[n, c] = swish / deviation
    return _affine(xhat_NCHW, state), state


def frozen_batch_norm(x_NCHW, state, options, training):
    """An affine of the input, by stored numbers: batch norm in evaluation."""
    sigma_C = np.sqrt(state["running_var"] + options["eps"])
    mean_C = state["running_mean"]
    return _affine((x_NCHW - mean_C[:, None, None]) / sigma_C[:, None, None], state), state


def batch_norm(x_NCHW, state, options, training):
    """Ioffe & Szegedy 2015; of the examples of all processes, which are one batch here."""
    return ghost_batch_norm(x_NCHW, state, {**options, "ghost_batch": len(x_NCHW)}, training)


def ghost_batch_norm(x_NCHW, state, options, training):
    """Hoffer et al. 2017, Algorithm 1, with ghost batches in order."""
    if not training:
        return frozen_batch_norm(x_NCHW, state, options, training)
    xhat_NCHW, size = _empty_like(x_NCHW, state), options["ghost_batch"]
    after = {**state, **{k: state[k].copy() for k in ("running_mean", "running_var")}}
    for first in range(0, len(x_NCHW), size):
        for c in range(x_NCHW.shape[1]):
            values = x_NCHW[first : first + size, c]
            xhat_NCHW[first : first + size, c] = _standardized(values, options["eps"])
            mean, var = _moments(values)
            seen = {"running_mean": mean, "running_var": var * values.size / (values.size - 1)}
            for key, statistic in seen.items():
                after[key][c] = _followed(after[key][c], statistic, options)
        after["num_batches_tracked"] = after["num_batches_tracked"] + 1
    return _affine(xhat_NCHW, state), after


def batch_renorm(x_NCHW, state, options, training):
    """Ioffe 2017, Algorithm 1, with sigma from an unbiased running variance.

    r and d are of the real parts: gradients take them for constants.
    """
    if not training:
        return frozen_batch_norm(x_NCHW, state, options, training)
    rmax, dmax = options["rmax"], options["dmax"]
    if options["total_examples"] is not None:
        done, start = int(state["examples_seen"]) / options["total_examples"], options["warmup"]
        rmax = np.interp(done, [start, options["rmax_at"]], [1.0, rmax])
        dmax = np.interp(done, [start, options["dmax_at"]], [0.0, dmax])
    xhat_NCHW = _empty_like(x_NCHW, state)
    mean_C, var_C = state["running_mean"].copy(), state["running_var"].copy()
    for c in range(x_NCHW.shape[1]):
        values = x_NCHW[:, c]
        mu, var = _moments(values)
        sigma_b, sigma = np.sqrt(var + options["eps"]), np.sqrt(var_C[c] + options["eps"])
        r = min(max(sigma_b.real / sigma, 1 / rmax), rmax)
        d = min(max((mu.real - mean_C[c]) / sigma, -dmax), dmax)
        xhat_NCHW[:, c] = (values - mu) / sigma_b * r + d
        mean_C[c] = _followed(mean_C[c], mu, options)
        var_C[c] = _followed(var_C[c], var * values.size / (values.size - 1), options)
    seen = state["examples_seen"] + len(x_NCHW)
    after = {"running_mean": mean_C, "running_var": var_C, "examples_seen": seen}
    return _affine(xhat_NCHW, state), {**state, **after}


def switchable_norm(x_NCHW, state, options, training):
    """Luo et al. 2018, equations 3 to 5."""

    def moments(axes):
        mean = x_NCHW.mean(axis=axes, keepdims=True)
        return mean, ((x_NCHW - mean) ** 2).mean(axis=axes, keepdims=True)

    def mixture(key, statistics):
        powers = np.exp(state[key])
        return sum(w * s for w, s in zip(powers / powers.sum(), statistics, strict=True))

    kinds, after = [moments((2, 3)), moments((1, 2, 3))], dict(state)
    if training:
        mean, var = moments((0, 2, 3))
        kinds.append((mean, var))
        m = x_NCHW.size // x_NCHW.shape[1]
        for key, seen in (("running_mean", mean), ("running_var", var * m / (m - 1))):
            after[key] = _followed(state[key], seen.ravel(), options)
        after["num_batches_tracked"] = state["num_batches_tracked"] + 1
    else:
        kinds.append(tuple(state[k][:, None, None] for k in ("running_mean", "running_var")))
    means, variances = zip(*kinds, strict=True)
    sigma = np.sqrt(mixture("var_weight", variances) + options["eps"])
    return _affine((x_NCHW - mixture("mean_weight", means)) / sigma, state), after


def online_statistics(x_NCHW, state, options, training):
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
    y_NCHW, _, after = online_statistics(x_NCHW, state, options, training)
    z_NCHW = _affine(y_NCHW, state)
    squares_N = (z_NCHW**2).sum(axis=(1, 2, 3)) / z_NCHW[0].size
    return z_NCHW / np.sqrt(squares_N + options["eps"])[:, None, None, None], after
