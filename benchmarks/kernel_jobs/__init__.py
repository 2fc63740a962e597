"""What `kernels.py` times: each operation by the kernels and by eager torch."""
