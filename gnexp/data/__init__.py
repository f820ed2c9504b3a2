"""Image sources, subsets, images on the device, blocks of updates, random streams.

It imports no other package. No model and no config goes here.
"""
