"""Independent random streams, each named by a seed, a purpose and counters; and secret numbers."""

import contextlib
import hashlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor


def derived_seed(seed: int, purpose: str, *counters: int) -> int:
    """Return a 63-bit seed that only this (seed, purpose, counters) gets.

    Order, initialization, augmentation and measurement must not share a stream: an extra draw in
    one would shift all the others. Hashing also makes a stream addressable: epoch 7 of seed 3 can
    be drawn without drawing epochs 0 to 6, which is what lets a killed run continue exactly.
    """
    name = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a CPU generator for this stream: the same draws on every device."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *counters))


@contextlib.contextmanager
def own_stream(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators, of the CPU and the device; put them back after the context."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


def secret_uniform(count: int) -> Tensor:
    """Return (count,) float64 numbers within (0, 1), ends excluded, of the system's entropy.

    No seed gives them again: a generator of PyTorch is seeded with 32 bits on a CPU, which can be
    tried out, and its state follows from its numbers.
    """
    drawn = torch.tensor(bytearray(os.urandom(8 * count)), dtype=torch.uint8).view(torch.int64)
    # Of 52 bits, a half more is still exact: with 53 the largest would be rounded to 1.
    return (drawn & (2**52 - 1)).double().add_(0.5).mul_(2.0**-52)


def secret_normal(like: Tensor) -> Tensor:
    """Return standard normal numbers of the system's entropy, shaped and placed like a tensor."""
    drawn = torch.special.ndtri(secret_uniform(like.numel()))
    return drawn.view(like.shape).to(like)
