"""One optimizer step of stacked replicas, the epoch loop, CUDA graphs, DP-SGD.

It may import data, models, norms and config.torchrun. No config object, file or table goes here.
"""
