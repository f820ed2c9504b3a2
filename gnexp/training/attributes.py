"""Plain attributes of a model: what training changes outside of the state dict.

Shapes: N examples, C channels, H and W pixels.
"""

import contextlib
import pickle
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gnexp.norms.module_state import copied

_OF_EVERY_MODULE = {*vars(nn.Module())}
_LIBRARIES = ("torch.", "torchvision.", "timm.", "gnexp.", "builtins")


def attributes(model: nn.Module) -> dict[str, Any]:
    """Return what modules keep beside parameters, buffers and modules, by LAYER.ATTRIBUTE."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in _OF_EVERY_MODULE
    }


def stored_attributes(model: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """Return copies of the attributes of these names, as a checkpoint holds them."""
    held = attributes(model)
    return {name: copied(held[name]) for name in names if name in held}


def put_attributes(model: nn.Module, values: dict[str, Any]) -> None:
    """Give attributes the values that `stored_attributes` returned."""
    for name, value in values.items():
        layer, _, key = name.rpartition(".")
        setattr(model.get_submodule(layer), key, copied(value))


def changing(model: nn.Module, shape: Sequence[int]) -> tuple[list[str], list[str]]:
    """Return what two passes of training change outside of the state dict: (storable, others).

    shape: (C, H, W). Storable are attributes of numbers, text, tensors, and lists, tuples and dicts
    of these. Others are attributes of other kinds, of classes, and the random states of Python and
    NumPy. Tensors of a pass's graph are no state: the next pass makes them anew. The model and all
    random states stay as they are. ([], []) where a pass raises.
    """
    trial = copied(model).train()
    draw = torch.Generator().manual_seed(0)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x_NCHW = torch.randn(2, *shape, generator=draw).to(device)
    before, python, numpy = _snapshot(trial), random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            for training in (True, False, True):
                trial.train(training)(x_NCHW).square().mean().backward()
        states = {"Python": (python, random.getstate()), "NumPy": (numpy, np.random.get_state())}
    except Exception:  # whatever the user's code does: training meets the same error
        return [], []
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
    after, held = _snapshot(trial), attributes(trial)
    changed = [name for name, value in after.items() if before.get(name) != value]
    storable = [name for name in changed if name in held and _plain(held[name])]
    others = [name for name in changed if name not in storable]
    moved = [of for of, (was, now) in states.items() if pickle.dumps(was) != pickle.dumps(now)]
    return storable, others + [f"the random state of {of}" for of in moved]


def _snapshot(model: nn.Module) -> dict[str, bytes]:
    """Return attributes of the modules and of the user's classes as bytes."""
    held = attributes(model)
    for kind in {k for module in model.modules() for k in type(module).__mro__}:
        if not f"{kind.__module__}.".startswith(_LIBRARIES):
            held |= {
                f"the class {kind.__qualname__}.{key}": value
                for key, value in vars(kind).items()
                if not callable(value) and not key.startswith("__")
            }
    found = {}
    for name, value in held.items():
        with contextlib.suppress(Exception):  # what cannot be written is taken for unchanged
            found[name] = pickle.dumps(_without_graph(value))
    return found


def _without_graph(value: Any) -> Any:
    """Return a value without the tensors of a pass's graph, and tensors as arrays of bytes."""
    if isinstance(value, nn.Module):
        return type(value).__qualname__
    if isinstance(value, Tensor):
        return None if value.grad_fn is not None else value.detach().cpu().numpy()
    if isinstance(value, list | tuple):
        return [_without_graph(each) for each in value]
    if isinstance(value, dict):
        return {key: _without_graph(each) for key, each in value.items()}
    return value


def _plain(value: Any) -> bool:
    """Return whether a checkpoint that is read without running code can hold a value."""
    if type(value) in (list, tuple):
        return all(map(_plain, value))
    if type(value) is dict:
        return all(map(_plain, [*value, *value.values()]))
    return value is None or type(value) in (bool, int, float, str, Tensor)
