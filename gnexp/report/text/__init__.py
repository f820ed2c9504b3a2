"""The sentences of a report.

It imports what `gnexp.report` may import. What is true is decided in `gnexp.analysis`.
"""
