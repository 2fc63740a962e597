"""Feature models: what PaDiM and PatchCore learn of normal features, and the pixel prior."""
