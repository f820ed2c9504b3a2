"""Instruments: a model and data in, numbers out; no config, no files, the model left as it was."""
