"""Batch-size robustness studies of normalization layers."""
