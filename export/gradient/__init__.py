"""Reverse-mode differentiation of ONNX graphs: `engine.py`, and one rules file per family."""
