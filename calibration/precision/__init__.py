"""Bundles in another precision: ranges, and what it costs, from normal images."""
