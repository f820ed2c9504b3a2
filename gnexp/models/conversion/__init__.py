"""The normalization layers of any model: found by trial, replaced, reported.

It imports what `gnexp.models` may import. No norm is treated by its name.
"""
