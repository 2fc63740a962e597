"""The precision of graphs: half types by casts, int8 by Q/DQ nodes; one rewrite a file."""
