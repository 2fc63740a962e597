"""Detectors whose features stay on the device."""
