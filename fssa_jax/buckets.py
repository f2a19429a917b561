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


def length_batches(
    lengths: Sequence[int], tokens: int, multiple: int = 1, limit: int = 2**24
) -> list[tuple[int, np.ndarray]]:
    """Rows of similar lengths together: (padded length, indices) of each batch, longest first.

    Every batch of one padded length has `batch_rows` rows, so that each bucket is one shape; all but the very last,
    which the caller fills up to `filled_rows`.

    Args:
      lengths: of the rows.
      tokens: of a batch, padding included, at most; a batch has at least `multiple` rows.
      multiple: rows of a batch are a multiple of this (the number of devices).
      limit: no row is longer, and no padded length is either.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        # Short rows are many: up to 128 every step of 8 is a shape of its own.
        size = -(-longest // 8) * 8 if longest <= 128 else bucket(longest)
        size = min(size, limit)
        number = batch_rows(size, tokens, multiple)
        batches.append((size, order[start : start + number]))
        start += number
    return batches


def batch_rows(size: int, tokens: int, multiple: int = 1) -> int:
    """Rows in a batch of this padded length."""
    return max(tokens // size // multiple, 1) * multiple


def filled_rows(number: int, full: int, multiple: int = 1) -> int:
    """Rows that a batch of `number` is filled up to: `multiple` times a power of two, `full` at most."""
    size = multiple
    while size < number:
        size *= 2
    return min(size, full)


def padding_share(lengths: Sequence[int]) -> float:
    """The share of padding among all tokens when every row is padded to its bucket."""
    padded = sum(bucket(max(int(n), 1)) for n in lengths)
    return 1 - sum(lengths) / padded if padded else 0.0
