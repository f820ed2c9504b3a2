"""Normalization layers: the table of norms, their float64 reference, and probes of a model."""
