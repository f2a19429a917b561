"""Lengths are rounded up to few sizes, so that few programs are compiled and little is padding."""

from collections.abc import Sequence

import numpy as np

# Each size is at most a quarter, or one step of 8, above the one before: of uniform lengths an eighth is padding.
_SIZES: list[int] = [8]
while _SIZES[-1] < 2**24:
    _SIZES.append(max(_SIZES[-1] + 8, int(_SIZES[-1] * 1.25) // 8 * 8))


def bucket(length: int) -> int:
    """The smallest of 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 120, … that is at least `length`.

    >>> from fssa_jax.buckets import bucket
    >>> bucket(1), bucket(64), bucket(65), bucket(500)
    (8, 64, 80, 504)
    """
    return next(size for size in _SIZES if size >= length)


def length_batches(lengths: Sequence[int], tokens: int, multiple: int = 1) -> list[tuple[int, np.ndarray]]:
    """Rows of similar lengths together: (padded length, indices) of each batch, longest first.

    Every batch of one padded length has the same number of rows (the last is to be filled up by the caller), so that
    each bucket is one shape.

    Args:
      lengths: of the rows.
      tokens: of a batch, padding included, at most; a batch has at least `multiple` rows.
      multiple: rows of a batch are a multiple of this (the number of devices).
    """
    padded = np.array([bucket(max(int(n), 1)) for n in lengths])
    batches = []
    for size in sorted(set(padded.tolist()), reverse=True):
        rows = np.flatnonzero(padded == size)
        number = batch_rows(size, tokens, multiple)
        batches += [(size, rows[i : i + number]) for i in range(0, len(rows), number)]
    return batches


def batch_rows(size: int, tokens: int, multiple: int = 1) -> int:
    """Rows in a batch of this padded length."""
    return max(tokens // size // multiple, 1) * multiple


def padding_share(lengths: Sequence[int]) -> float:
    """The share of padding among all tokens when every row is padded to its bucket."""
    padded = sum(bucket(max(int(n), 1)) for n in lengths)
    return 1 - sum(lengths) / padded if padded else 0.0
