"""Weights that the graphs of a bundle have in common, stored once: one rewrite per file."""
