"""A forward pass of a model that is watched: what reaches each module, and from where.

It also finds normalization outside of such layers, as a call of torch.nn.functional.batch_norm.

Shapes: N examples, C channels, H and W pixels.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gnexp.norms.module_state import copied

CALLS = {
    *("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"),
    *("native_batch_norm", "native_group_norm", "native_layer_norm", "cudnn_batch_norm"),
    *("_native_batch_norm_legit", "_batch_norm_impl_index", "batch_norm_stats"),
}


@dataclass(frozen=True)
class Call:
    """A call of a function that normalizes: from within which modules, innermost last.

    of_weights: what it is given has the size of the innermost module's own weight.
    """

    within: tuple[str, ...]
    function: str
    of_weights: bool


@dataclass
class Traced:
    """Facts observed in a forward pass, by the names of modules.

    shapes: of every input. same: modules that made one tensor of one tensor, of the same shape.
    convolutions: of each module, the one whose output it takes, where it always is one.
    """

    shapes: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    same: dict[str, bool] = field(default_factory=dict)
    convolutions: dict[str, str | None] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def standardized(self, norms: Collection[str]) -> list[str]:
        """Return the convolutions that normalize their own weights, none of them in `norms`."""
        return list(dict.fromkeys(c.within[-1] for c in self._outside(norms) if c.of_weights))

    def strays(self, norms: Collection[str]) -> list[tuple[str, str]]:
        """Return (module, function) of other calls that normalize, outside of these modules."""
        outside = self._outside(norms)
        return [("".join(c.within[-1:]), c.function) for c in outside if not c.of_weights]

    def _outside(self, norms: Collection[str]) -> list[Call]:
        return [call for call in self.calls if not {*call.within} & {*norms}]


class _Watch(TorchFunctionMode):
    """Hears of every call of PyTorch, and of modules through their hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.traced = Traced()
        self.open: list[tuple[str, nn.Module]] = []
        self.last: tuple[str, Any] = ("", None)  # a convolution, and its output

    def entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.open.append((name, module))
            x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            if x is None:
                return
            self.traced.shapes.setdefault(name, []).append(tuple(x.shape))
            source = self.last[0] if self.last[1] is x else None
            known = self.traced.convolutions.setdefault(name, source)
            self.traced.convolutions[name] = source if known == source else None

        return hook

    def leaving(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.open.pop()
            single_input = len(args) == 1 and all(isinstance(t, Tensor) for t in (*args, output))
            same = single_input and output.shape == args[0].shape and output.is_floating_point()
            self.traced.same[name] = self.traced.same.get(name, True) and same
            if isinstance(module, nn.modules.conv._ConvNd):
                self.last = (name, output)

        return hook

    def __torch_function__(self, func, types, args=(), kwargs=None):
        called = getattr(func, "__name__", "")
        if called in CALLS:
            within = tuple(name for name, _ in self.open)
            weight = getattr(self.open[-1][1], "weight", None) if self.open else None
            # A convolution that standardizes its weights shows them to batch_norm as one example.
            own = isinstance(weight, Tensor) and bool(args) and args[0].shape[0] == 1
            own = own and args[0].numel() == weight.numel()
            self.traced.calls.append(Call(within, called, own))
        return func(*args, **(kwargs or {}))


def pass_example(model: nn.Module, example: Any) -> Any:
    """Return model(example); a tuple or list is positional arguments, a mapping is keywords."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


def trace(model: nn.Module, example: Any) -> Traced:
    """Pass an example through a copy of the model, in evaluation and in training, and watch.

    example: see `pass_example`; a single image is doubled for the pass in train mode, as batch norm
    refuses one value per channel. The model and the random state stay as they are. Raises whatever
    the model raises.
    """
    model = copied(model)
    watch = _Watch()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(watch.entering(name), with_kwargs=True, prepend=True)
        module.register_forward_hook(watch.leaving(name))
    with torch.random.fork_rng(), torch.no_grad(), watch:
        pass_example(model.eval(), example)
        pass_example(model.train(), _doubled(example))
    return watch.traced


def _doubled(example: Any) -> Any:
    """Return an example of one image as one of two."""
    example = dict(example) if isinstance(example, Mapping) else example
    tensors = [each for each in tree_leaves(example) if isinstance(each, Tensor) and each.ndim]
    if any(len(each) != 1 for each in tensors):
        return example
    return tree_map_only(Tensor, lambda x: torch.cat([x, x]) if x.ndim else x, example)
