"""PatchCore, PaDiM and CFLOW-AD: how unusual are the features of each cell."""
