"""Backward passes of the float64 references, written from the formulas.

For each set S of values that share a statistic, with dxhat = gamma_c dy and all means over S,

    dx = (1/sigma) (dxhat - mean(dxhat) - xhat mean(dxhat xhat))
    dgamma_c = sum_nhw dy xhat,  dbeta_c = sum_nhw dy

The formula is exact with eps inside sigma. It is the chain rule through mu and var. Online Norm's
backward pass is no slope of its forward pass: Chiley et al. 2019, arXiv:1905.05894.

Shapes: N examples, C channels, H and W pixels.
"""

import numpy as np

from gnexp.norms.reference.online import _layer_scales, _normalized
from gnexp.norms.reference.standard import _standardize


def normalize_backward_reference(
    name: str,
    x_NCHW: np.ndarray,
    gamma_C: np.ndarray,
    beta_C: np.ndarray,
    eps: float,
    groups: int | None,
    dy_NCHW: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dx (N, C, H, W), dgamma (C,), dbeta (C,)) for the output gradient `dy_NCHW`.

    Arguments as in `normalize_reference`; `beta_C` does not enter a gradient and is there so that
    both take the same arguments.
    """
    xhat_NCHW, sigmas = _standardize(name, x_NCHW, eps, groups)
    dy_NCHW = np.asarray(dy_NCHW, dtype=np.float64)
    dgamma_C = (dy_NCHW * xhat_NCHW).sum(axis=(0, 2, 3))
    dbeta_C = dy_NCHW.sum(axis=(0, 2, 3))
    dx_NCHW = dy_NCHW * np.asarray(gamma_C, dtype=np.float64)[:, None, None]  # dxhat
    for index, sigma in sigmas:
        dxhat, xhat = dx_NCHW[index], xhat_NCHW[index]
        mean_dxhat = dxhat.sum() / dxhat.size
        mean_product = (dxhat * xhat).sum() / dxhat.size
        dx_NCHW[index] = (dxhat - mean_dxhat - xhat * mean_product) / sigma
    return dx_NCHW, dgamma_C, dbeta_C


def online_norm_backward(x_NCHW, state, options, dout_NCHW):
    """Return (gradients of "x", "weight" and "bias", state afterwards) of one training pass.

    state: before its forward pass; dout_NCHW: the gradient of its output.
    """
    y_NCHW, sigma_NC, after = _normalized(x_NCHW, state, options, True)
    z_NCHW = state["weight"][:, None, None] * y_NCHW + state["bias"][:, None, None]
    scale_N = _layer_scales(z_NCHW, options["eps"])
    dz_NCHW = np.zeros_like(y_NCHW)
    for n, dout_CHW in enumerate(dout_NCHW):
        out_CHW = z_NCHW[n] / scale_N[n]
        dz_NCHW[n] = (dout_CHW - (dout_CHW * out_CHW).mean() * out_CHW) / scale_N[n]
    gradients = {
        "weight": (dz_NCHW * y_NCHW).sum(axis=(0, 2, 3)),
        "bias": dz_NCHW.sum(axis=(0, 2, 3)),
        "x": np.zeros_like(y_NCHW),
    }
    e_y, e_1 = state["control_y"].copy(), state["control_1"].copy()
    k = 1 - options["alpha_b"]
    for n, y_CHW in enumerate(y_NCHW):
        g_CHW = state["weight"][:, None, None] * dz_NCHW[n] - k * e_y[:, None, None] * y_CHW
        e_y = e_y + (g_CHW * y_CHW).mean(axis=(1, 2))
        dx_CHW = g_CHW / sigma_NC[n][:, None, None] - k * e_1[:, None, None]
        e_1 = e_1 + dx_CHW.mean(axis=(1, 2))
        gradients["x"][n] = dx_CHW
    return gradients, {**after, "control_y": e_y, "control_1": e_1}
