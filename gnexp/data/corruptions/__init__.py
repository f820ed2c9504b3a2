"""Corruptions of images in the style of CIFAR-10-C, and the released files.

It imports what `gnexp.data` may import. Every draw comes from a seed, whatever the platform.
"""
