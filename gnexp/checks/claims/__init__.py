"""One file per claim: a function `measure` from a norm under test to findings and points.

It imports what `gnexp.checks` may import. No claim reads what another one measured.
"""
