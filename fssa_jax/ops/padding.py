"""Padding: lengths are rounded up to a few sizes, to compile few programs and to waste few tokens."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from fssa_jax.ops._checks import check_shapes

# How rows, sorted by length with the longest first, are padded: (rows, padded length) of each group in order.
Plan = tuple[tuple[int, int], ...]

# Each size exceeds the previous one by at most a quarter, or by 8: with uniform lengths an eighth is padding.
_SIZES: list[int] = [8]
while _SIZES[-1] < 2**24:
    _SIZES.append(max(_SIZES[-1] + 8, int(_SIZES[-1] * 1.25) // 8 * 8))


def bucket(length: int) -> int:
    """The smallest of 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 120, … that is at least `length`.

    >>> from fssa_jax.ops.padding import bucket
    >>> bucket(1), bucket(64), bucket(65), bucket(500)
    (8, 64, 80, 504)
    """
    return next(size for size in _SIZES if size >= length)


def length_batches(
    lengths: Sequence[int], tokens: int, multiple: int = 1, limit: int = 2**24
) -> list[tuple[int, np.ndarray]]:
    """Batches of rows of similar lengths: (padded length, indices) of each, longest first.

    Every batch of one padded length has `batch_rows` rows, so that each bucket is one shape. Only the very last batch
    may be smaller; the caller fills it up to `filled_rows`.

    Args:
      lengths: of the rows.
      tokens: maximum tokens of a batch, padding included; a batch has at least `multiple` rows.
      multiple: rows of a batch are a multiple of this (the number of devices).
      limit: maximum length of rows, and of padded lengths.

    >>> from fssa_jax.ops import length_batches
    >>> [(size, rows.tolist()) for size, rows in length_batches([9, 30, 3, 12], tokens=32)]
    [(32, [1]), (16, [3, 0]), (8, [2])]
    """
    check_shapes(lengths=(lengths, "rows"))
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        # Short rows are many: up to 128 every multiple of 8 is a separate shape.
        size = -(-longest // 8) * 8 if longest <= 128 else bucket(longest)
        size = min(size, limit)
        number = batch_rows(size, tokens, multiple)
        batches.append((size, order[start : start + number]))
        start += number
    return batches


def batch_rows(size: int, tokens: int, multiple: int = 1) -> int:
    """Rows in a batch of this padded length; arguments as in `length_batches`.

    >>> from fssa_jax.ops import batch_rows
    >>> batch_rows(100, tokens=1000, multiple=4)
    8
    """
    return max(tokens // size // multiple, 1) * multiple


def filled_rows(number: int, full: int, multiple: int = 1) -> int:
    """Number of rows to which a batch of `number` rows is padded: `multiple` times a power of two, at most `full`.

    >>> from fssa_jax.ops import filled_rows
    >>> filled_rows(5, full=32), filled_rows(30, full=24)
    (8, 24)
    """
    size = multiple
    while size < number:
        size *= 2
    return min(size, full)


def padding_share(lengths: Sequence[int]) -> float:
    """The share of padding among all tokens when every row is padded to its bucket.

    >>> from fssa_jax.ops import padding_share
    >>> padding_share([6, 14])  # padded to 8 and 16
    0.16666666666666663
    """
    check_shapes(lengths=(lengths, "rows"))
    padded = sum(bucket(max(int(n), 1)) for n in lengths)
    return 1 - sum(lengths) / padded if padded else 0.0


def best_plan(lengths: Sequence[int] | np.ndarray, groups: int, limit: int = 2**24) -> Plan:
    """The plan of at most `groups` groups, cut at eighths of the rows, with the fewest tokens, padding included.

    Args:
      lengths: of the rows, longest first.
      groups: maximum number of groups; each is compiled separately.
      limit: maximum length of rows, and of padded lengths.

    >>> from fssa_jax.ops.padding import best_plan
    >>> best_plan([90, 90, 90, 90, 30, 30, 30, 30], groups=2)
    ((4, 96), (4, 32))
    """
    check_shapes(lengths=(lengths, "rows"))
    number = len(lengths)
    places = sorted({round(number * i / 8) for i in range(1, 8)} - {0, number})
    plans = (
        tuple((end - start, min(bucket(max(int(lengths[start]), 1)), limit)) for start, end in itertools.pairwise(at))
        for cuts in range(min(groups, len(places) + 1))
        for inside in itertools.combinations(places, cuts)
        for at in [(0, *inside, number)]
    )
    return min(plans, key=padded_tokens)


def padded_tokens(plan: Plan) -> int:
    """Tokens of a batch, padding included.

    >>> from fssa_jax.ops import padded_tokens
    >>> padded_tokens(((4, 96), (4, 32)))
    512
    """
    return sum(rows * length for rows, length in plan)


def fits(plan: Plan, lengths: Sequence[int] | np.ndarray) -> bool:
    """Whether rows of these lengths, longest first, fit into the groups of a plan.

    >>> from fssa_jax.ops import fits
    >>> fits(((1, 96), (1, 32)), [90, 30]), fits(((1, 96), (1, 32)), [90, 40])
    (True, False)
    """
    check_shapes(lengths=(lengths, "rows"))
    starts = itertools.accumulate((rows for rows, _ in plan), initial=0)
    return all(int(lengths[start]) <= length for start, (_, length) in zip(starts, plan, strict=False))


def cheapest(plans: Iterable[Plan], lengths: Sequence[int] | np.ndarray) -> Plan:
    """The plan with the fewest tokens among those that rows of these lengths, longest first, fit into.

    >>> from fssa_jax.ops import cheapest
    >>> cheapest([((2, 96),), ((1, 96), (1, 32))], [90, 30])
    ((1, 96), (1, 32))
    """
    return min((plan for plan in plans if fits(plan, lengths)), key=padded_tokens)


def few_plans(batches: np.ndarray, groups: int, limit: int, most: int = 4) -> list[Plan]:
    """A few plans with little padding for typical batches, and one that fits every batch.

    The plan of a batch depends only on the batch (`cheapest`), and at most `most` + 1 programs are compiled. Plans are
    added greedily as long as one more saves at least a twentieth of all tokens.

    Args:
      batches: (batches, rows) lengths of typical batches, longest first.
      groups, limit: see `best_plan`.

    >>> import numpy as np
    >>> from fssa_jax.ops import few_plans
    >>> few_plans(np.array([[90, 30], [90, 30]]), groups=2, limit=100)
    [((2, 100),), ((1, 96), (1, 32))]
    """
    check_shapes(batches=(batches, "batches rows"))
    rows = batches.shape[1]
    chosen: list[Plan] = [((rows, limit),)]
    tokens = np.full(len(batches), padded_tokens(chosen[0]))
    candidates = {best_plan(lengths, groups, limit) for lengths in batches}
    cost = {
        plan: np.array([padded_tokens(plan) if fits(plan, lengths) else 2**62 for lengths in batches])
        for plan in sorted(candidates)
    }
    for _ in range(min(most, len(cost))):
        plan = min(cost, key=lambda p: np.minimum(tokens, cost[p]).sum())
        fewer = np.minimum(tokens, cost[plan])
        if fewer.sum() > 0.95 * tokens.sum():
            break
        chosen.append(plan)
        tokens = fewer
    return chosen
