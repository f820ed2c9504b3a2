"""Reports of a study, a check or a benchmark: text, figures, pages.

It may import analysis and store, and never torch. Nothing is computed here.
"""
