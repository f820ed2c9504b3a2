"""Residual networks that take their normalization layer as a callable."""
