"""Run folders: whole-file writes, digests, locks, the status of a study.

It imports no other package, and never torch. It knows files, and no statistics.
"""
