"""In what precision products are computed: float32, TF32 or bfloat16."""

import contextlib

import torch


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Return the context in which forward passes of this precision run."""
    if precision == "bf16":
        # Casts of the weights are not cached: a cache would outlive the update that a graph holds.
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def matrix_precision(precision: str):
    """Let CUDA matrix products and convolutions use TF32, or not, and restore the setting."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
