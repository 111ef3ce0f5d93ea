"""Exact piecewise-linear machinery: a network as a program, along polylines and on polygons."""

MEMORY = 2**26
"""Bytes that the working tensors take by default."""
