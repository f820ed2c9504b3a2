"""Throughput and memory of training, beside a plain PyTorch loop in the same call.

It imports what `gnexp.runner` may import. Tables and figures of a benchmark are in `gnexp.report`.
"""
