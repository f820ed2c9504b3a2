"""All that measuring may not change in a model, and in PyTorch's random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def _bytes(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().contiguous().view(-1).numpy().tobytes()


def _seen(model: nn.Module) -> dict[str, object]:
    modules, parameters = [*model.modules()], [*model.parameters()]
    return {
        "tensors": {name: (t.dtype, _bytes(t)) for name, t in model.state_dict().items()},
        "objects": [id(t) for t in (*parameters, *model.buffers())],
        "grad": [_bytes(p.grad) for p in parameters],
        "requires_grad": [p.requires_grad for p in parameters],
        "training": [module.training for module in modules],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        "random": _bytes(torch.get_rng_state()),
    }


@contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Assert that the block leaves every bit as it was, also where it raises."""
    before = _seen(model)
    try:
        yield
    finally:
        after = _seen(model)
        assert [key for key in before if before[key] != after[key]] == []
