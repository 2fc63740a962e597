"""Torch definitions of the trainable models, and loaders of known checkpoints."""
