"""The precision of graphs: float16 and bfloat16 by casts, int8 by Q/DQ nodes; one rewrite a file."""
