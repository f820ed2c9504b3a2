"""The reference of every norm in the table, and its directional derivative.

A reference is a plain function from an input and the numbers a layer holds to an output and the
numbers it holds afterwards, in float64 NumPy. It shares no code with the layers. References do only
what is analytic, but for the comparisons that the formulas contain, so complex numbers pass through
them, and the slope along a direction d is

    d/dt f(x + t d) = Im f(x + i h d) / h,  h = 1e-30,

exact to rounding, since nothing is subtracted (Squire & Trapp 1998, SIAM Review 40(1)).

Shapes: N examples, C channels, H and W pixels.
"""

from collections.abc import Callable, Mapping

import numpy as np

from gnexp.norms.reference import formulas

State = dict[str, np.ndarray]  # a layer's parameters and buffers by name, of (C,), or () for counts
Options = Mapping[str, object]  # what the layer was built with
# (x_NCHW, state, options, training) -> (y_NCHW, state after the pass)
Reference = Callable[[np.ndarray, State, Options, bool], tuple[np.ndarray, State]]
_STEP = 1e-30

_REFERENCES: dict[str, Reference] = {
    "bn": formulas.batch_norm,
    "gn": formulas.group_norm,
    "ln": formulas.layer_norm,
    "in": formulas.instance_norm,
    "none": formulas.no_norm,
    "ln2d": formulas.pixel_layer_norm,
    "rms": formulas.rms_norm,
    "dyt": formulas.dynamic_tanh,
    "frn": formulas.filter_response_norm,
    "evonorm_b0": formulas.evonorm_b0,
    "evonorm_s0": formulas.evonorm_s0,
    "brn": formulas.batch_renorm,
    "gbn": formulas.ghost_batch_norm,
    "syncbn": formulas.batch_norm,
    "bn_frozen": formulas.frozen_batch_norm,
    "switchable": formulas.switchable_norm,
    "online": formulas.online_norm,
    "gn_ws": formulas.group_norm,  # the convolutions differ, the layer does not
    "none_fixup": formulas.no_norm,
}
REFERENCES = tuple(_REFERENCES)
# Norms whose source defines a backward pass that is not the slope of the forward pass.
OWN_BACKWARD = ("online",)


def reference(
    name: str, x_NCHW: np.ndarray, state: State, options: Options, training: bool = True
) -> tuple[np.ndarray, State]:
    """Return (y (N, C, H, W), state afterwards) of norm `name` for the numbers a layer holds.

    Raises ValueError for a number of groups that does not divide the channels.
    """
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
