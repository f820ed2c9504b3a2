"""Configs of all commands: schema, validation, resolution, identity of a run.

It imports no other package, and never torch: a grid is refused before torch is loaded.
"""
