"""Trees of arrays, compared."""

from typing import Any

import jax
import numpy as np


def leaves(tree: Any) -> list[np.ndarray]:
    """The arrays of a tree."""
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_same(a: Any, b: Any) -> None:
    """Two trees are equal bit for bit."""
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def largest_difference(a: Any, b: Any) -> float:
    """Of any two numbers at the same place."""
    return max(float(np.abs(x - y).max()) for x, y in zip(leaves(a), leaves(b), strict=True))
