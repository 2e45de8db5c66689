"""Rotated boxes in plain PyTorch: geometry, exact overlap, suppression and pooling."""
