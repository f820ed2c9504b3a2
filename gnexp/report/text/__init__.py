"""The sentences of a report.

It imports what `gnexp.report` may import. Words are in the templates; what is true is
decided in `gnexp.analysis`.
"""
