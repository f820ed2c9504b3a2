"""Turning a model and images into epochs of training."""
