"""Throughput and memory of training, ours and a plain PyTorch loop's, measured side by side."""
