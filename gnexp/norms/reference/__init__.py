"""Every norm of the table in float64 NumPy, written from the formulas.

It imports nothing of gnexp. It shares no code with the layers that it checks.
"""
