"""Replications of papers that look at generalisation through a network's inner activations."""

__version__ = "0.1.0"
