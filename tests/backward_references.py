"""The backward pass of Online Norm, which is no slope of its forward pass, from the formulas.

Source: Chiley et al. 2019, arXiv:1905.05894. Shapes: N examples, C channels, H and W pixels.
"""

import numpy as np

from gnexp.norms.reference.formulas import online_statistics


def online_norm_backward(x_NCHW, state, options, dout_NCHW):
    """Return (gradients of "x", "weight" and "bias", state afterwards) of one training pass.

    state: before its forward pass; dout_NCHW: the gradient of its output.
    """
    y_NCHW, sigma_NC, after = online_statistics(x_NCHW, state, options, True)
    z_NCHW = state["weight"][:, None, None] * y_NCHW + state["bias"][:, None, None]
    dz_NCHW = np.zeros_like(y_NCHW)
    for n, dout_CHW in enumerate(dout_NCHW):
        scale = np.sqrt((z_NCHW[n] ** 2).mean() + options["eps"])
        out_CHW = z_NCHW[n] / scale
        dz_NCHW[n] = (dout_CHW - (dout_CHW * out_CHW).mean() * out_CHW) / scale
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
