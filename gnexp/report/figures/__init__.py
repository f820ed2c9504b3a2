"""The figures of a report.

It imports what `gnexp.report` may import. Colours, markers and file formats are in `style`,
lines, axes and legends in `panels`.
"""
