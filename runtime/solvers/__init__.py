"""Iterations as init / step / done, and the one loop that drives them."""
