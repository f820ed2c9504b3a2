"""Image sources: uint8 arrays from anywhere, then batches on the training device."""
