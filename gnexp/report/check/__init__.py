"""Tables, figures and terminal text of `gnexp check`.

It imports what `gnexp.report` may import. Nothing is measured here.
"""
