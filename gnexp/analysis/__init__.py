"""The rows of a study: cells, series, statistics, comparisons, fits.

It may import store, and never torch or matplotlib. It returns numbers, never sentences or figures.
"""
