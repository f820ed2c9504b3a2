"""The reference of every norm in the table, in float64 NumPy, and its directional derivative.

A reference is a plain function from an input and the numbers a layer holds to an output and the
numbers it holds afterwards. It is written from the source's formulas and shares no code with the
layers. References do only what is analytic, but for the comparisons that the formulas contain, so
complex numbers pass through them, and the slope along a direction d is

    d/dt f(x + t d) = Im f(x + i h d) / h,  h = 1e-30,

exact to rounding, since nothing is subtracted (Squire & Trapp 1998, SIAM Review 40(1)).

Shapes: N examples, C channels, H and W pixels.
"""

from collections.abc import Callable, Mapping

import numpy as np

from gnexp.norms.reference import batch, online, switchable
from gnexp.norms.reference.activating import ACTIVATING
from gnexp.norms.reference.pointwise import POINTWISE
from gnexp.norms.reference.standard import normalize_reference

State = dict[str, np.ndarray]  # a layer's parameters and buffers by name, of (C,), or () for counts
Options = Mapping[str, object]  # what the layer was built with
# (x_NCHW, state, options, training) -> (y_NCHW, state after the pass)
Reference = Callable[[np.ndarray, State, Options, bool], tuple[np.ndarray, State]]
_STEP = 1e-30


def _without_state(name: str) -> Reference:
    def reference(x_NCHW, state, options, training):
        groups = options.get("num_groups")
        eps = float(options.get("eps", 1e-5))
        y = normalize_reference(name, x_NCHW, state["weight"], state["bias"], eps, groups)
        return y, state

    return reference


def _batch_norm(x_NCHW, state, options, training):
    """Ioffe & Szegedy 2015; the running variance is unbiased, as in PyTorch."""
    gamma, beta, eps = state["weight"], state["bias"], options["eps"]
    if not training:
        mean, var = (state[k][:, None, None] for k in ("running_mean", "running_var"))
        xhat = (x_NCHW - mean) / np.sqrt(var + eps)
        return gamma[:, None, None] * xhat + beta[:, None, None], state
    y = normalize_reference("bn", x_NCHW, gamma, beta, eps)
    mean = x_NCHW.mean(axis=(0, 2, 3))
    count = x_NCHW.size // x_NCHW.shape[1]
    var = ((x_NCHW - mean[:, None, None]) ** 2).sum(axis=(0, 2, 3)) / (count - 1)
    momentum = options["momentum"]
    after = {
        "running_mean": (1 - momentum) * state["running_mean"] + momentum * mean,
        "running_var": (1 - momentum) * state["running_var"] + momentum * var,
        "num_batches_tracked": state["num_batches_tracked"] + 1,
    }
    return y, {**state, **after}


_REFERENCES: dict[str, Reference] = {
    "bn": _batch_norm,
    **{name: _without_state(name) for name in ("gn", "ln", "in", "none")},
    **POINTWISE,
    **ACTIVATING,
    **batch.REFERENCES,
    **switchable.REFERENCES,
    **online.REFERENCES,
    "gn_ws": _without_state("gn"),  # the convolutions differ, the layer does not
    "none_fixup": _without_state("none"),
}
REFERENCES = tuple(_REFERENCES)
# Norms whose source defines a backward pass that is not the slope of the forward pass.
OWN_BACKWARD = ("online",)


def reference(
    name: str, x_NCHW: np.ndarray, state: State, options: Options, training: bool = True
) -> tuple[np.ndarray, State]:
    """Return (y (N, C, H, W), state afterwards) of norm `name` for the numbers a layer holds."""
    return _REFERENCES[name](x_NCHW, state, options, training)


def slope(
    name: str,
    x_NCHW: np.ndarray,
    state: State,
    options: Options,
    dx_NCHW: np.ndarray,
    dstate: State,
    training: bool = True,
) -> np.ndarray:
    """Return d/dt y(x + t dx, state + t dstate) at t = 0, (N, C, H, W); dstate may be partial."""
    moved = {k: v + 1j * _STEP * dstate[k] if k in dstate else v for k, v in state.items()}
    y_NCHW, _ = reference(name, x_NCHW + 1j * _STEP * dx_NCHW, moved, options, training)
    return y_NCHW.imag / _STEP
