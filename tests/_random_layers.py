"""Random layers of two networks, as arrays, that tests of similarity share."""

import numpy as np


def related(n, dx, dy, seed=0):
    """Return two layers with common signals, their own noise, and means that are not 0."""
    r = np.random.default_rng(seed)
    z = r.normal(size=(n, 3))
    x = z @ r.normal(size=(3, dx)) + r.normal(size=(n, dx)) + 3
    y = z @ r.normal(size=(3, dy)) + r.normal(size=(n, dy)) - 2
    return x, y


def rotation(d, seed=0):
    """Return a random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
