"""Independent random streams, each named by a seed, a purpose and counters."""

import hashlib

import torch


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
