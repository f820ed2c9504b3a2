"""Stored runs as files of TensorBoard and Weights & Biases.

It may import config and store. A logger reads what is stored and never holds up a training.
"""
