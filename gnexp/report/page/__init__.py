"""The page of a report: one HTML file without links to other files.

It imports what `gnexp.report` may import. Templates, styles and script lie beside it.
"""
