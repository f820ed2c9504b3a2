"""Instruments: a model and data in, numbers out; weights, buffers and random state stay the same.

It may import training, data and norms. No config and no file goes here.
"""
