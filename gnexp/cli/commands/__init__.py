"""One function per command word, which joins the packages below.

It may import every package but other parts of `cli` that compose configs. No command holds logic
that the Python functions of `gnexp.api` would lack.
"""
