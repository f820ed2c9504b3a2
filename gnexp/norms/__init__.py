"""Normalization layers, the table of norms, plug-ins and the user's own code.

It imports no other package. No layer knows a config, a model or a batch size in advance.
"""
