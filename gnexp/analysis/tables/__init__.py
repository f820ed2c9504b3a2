"""Every table of a report: raw columns, shown columns, CSV, Markdown, LaTeX.

It imports what `gnexp.analysis` may import. A table states its numbers and decides nothing.
"""
