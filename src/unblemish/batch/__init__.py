"""Inspection of many images: where frames come from, what is written, and what is counted."""
