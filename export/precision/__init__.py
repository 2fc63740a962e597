"""The precision of graphs: half types by casts, int8 by Q/DQ nodes; one rewrite a file."""

QUANTISERS = ("onnxruntime", "modelopt")
"""What may place the nodes of int8."""
