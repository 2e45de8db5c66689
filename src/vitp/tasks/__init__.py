"""Downstream tasks: what a pretrained backbone is for."""
