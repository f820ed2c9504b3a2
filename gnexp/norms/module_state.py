"""Deep copies of modules that may hold what their last pass computed, and their state dicts."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

Copied = TypeVar("Copied")


class _Detaching(TorchFunctionMode):
    """Copy the value of a computed tensor, where PyTorch refuses to copy the tensor."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def copied(modules: Copied) -> Copied:
    """Return a deep copy of a module, or of a list of them, also after a pass with gradients.

    A module may keep tensors of its last pass: its features, or a weight that a hook computes anew
    before each pass (spectral norm, weight norm, pruning). In the copy they are detached.
    """
    with _Detaching():
        return copy.deepcopy(modules)


def put_state(model: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Load a state dict of a model of the same code, stored without the versions of its modules.

    A module may read its version, and refuse none. Raises as `load_state_dict` does.
    """
    state = model.state_dict()
    versions = getattr(state, "_metadata", None)
    state = type(state)(tensors)
    state._metadata = versions
    model.load_state_dict(state)


def lazy_tensors(model: nn.Module) -> list[str]:
    """Return the names of tensors whose shape the first pass is to decide."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [name for name, tensor in tensors if is_lazy(tensor)]
