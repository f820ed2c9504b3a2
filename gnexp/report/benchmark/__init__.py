"""Tables and figure of `gnexp bench` and of the memory cost.

It imports what `gnexp.report` may import. Nothing is timed here.
"""
