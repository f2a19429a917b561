"""Choices from ratings: between two responses that a person rated differently, or between a response and thresholds."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fssa_jax.data.rows import Rated, Row
from fssa_jax.data.thresholds import rating_threshold
from fssa_jax.errors import UserError

_MOST_LEVELS = 10
_QUANTILES = (0.2, 0.4, 0.6, 0.8)
_ROUNDS = 50  # random matchings of a person's responses
_ROUNDING = 1e-9  # 4.1 − 4.0 is a difference of 0.1

_Item = tuple[str, str, tuple[tuple[str, str], ...]]  # prompt, response, labels


def rows_of_ratings(rated: Sequence[Rated], gap: float = 0.0, most: int = 64, seed: int = 0) -> list[Row]:
    """Choices between responses of the same person and prompt whose ratings differ by more than 0 and at least `gap`.

    The prompts of a person, or the responses if there is one prompt, are divided at random into two halves, the pools
    of context and targets, unless the rows name pools. Pairs are made within a half, so pools share no text. They are
    made by random matchings, so that every response occurs about equally often. Responses with different labels, such
    as `split_item`, are not compared.

    Args:
      rated: the ratings. A response that a person rated several times has the mean of these.
      gap: the smallest difference of ratings that counts as a preference.
      most: maximum choices per person and pool.
      seed: of the halves and of the pairs.

    Raises:
      UserError: nobody rated two responses to a prompt differently.

    >>> from fssa_jax.data.ratings import rows_of_ratings
    >>> from fssa_jax.data.rows import Rated
    >>> ratings = [Rated("ann", "", f"film {i}", i / 2, {}, f"rows:{i}") for i in range(4)]
    >>> all(row.chosen > row.rejected for row in rows_of_ratings(ratings))
    True
    """
    people: dict[str, list[Rated]] = {}
    for one in rated:
        people.setdefault(one.user, []).append(one)
    rows = [row for user, mine in people.items() for row in _of_person(mine, gap, most, _rng(seed, user))]
    if not rows:
        place = rated[0].place if rated else "ratings"
        raise UserError(f"{place}: nobody rated two responses to the same prompt differently (by at least {gap:g})")
    return rows


def levels_of_ratings(rated: Sequence[Rated]) -> tuple[float, ...]:
    """The lowest rating of every level but the first.

    The levels are the distinct ratings if there are at most 10 of these, otherwise 5 levels between quantiles.

    Raises:
      UserError: all ratings are alike.

    >>> from fssa_jax.data.ratings import levels_of_ratings
    >>> from fssa_jax.data.rows import Rated
    >>> levels_of_ratings([Rated("ann", "", f"film {i}", float(i), {}, f"rows:{i}") for i in (1, 3, 4, 3)])
    (3.0, 4.0)
    """
    values = np.array([one.rating for one in rated])
    distinct = np.unique(values)
    if len(distinct) < 2:
        raise UserError(f"{rated[0].place}: all ratings are {distinct[0]:g}; leave them out, or give others too")
    if len(distinct) > _MOST_LEVELS:
        cut = np.unique(np.quantile(values, _QUANTILES, method="higher"))
        distinct = np.concatenate([distinct[:1], cut[cut > distinct[0]]])
    return tuple(distinct[1:].tolist())


def rows_of_levels(rated: Sequence[Rated], levels: Sequence[float]) -> list[Row]:
    """Choices between rated responses and thresholds: the sequential logit of `rating_log_likelihood`, row by row.

    A response on level j of L passes the thresholds 1 … j − 1, and fails at threshold j if j < L. Each is a factor of
    the likelihood, of weight 1. A response that a person rated several times has the mean of these.

    Args:
      rated: the ratings.
      levels: as `levels_of_ratings` returns them. A rating below all of these is on the first level.

    >>> from fssa_jax.data.ratings import rows_of_levels
    >>> from fssa_jax.data.rows import Rated
    >>> rows = rows_of_levels([Rated("ann", "", "film", 2.0, {}, "rows:1")], levels=(2.0, 3.0))
    >>> [row.texts for row in rows]
    [[('', 'film'), ('rating ≥ 2', '')], [('rating ≥ 3', ''), ('', 'film')]]
    """
    together: dict[tuple, list[Rated]] = {}
    for one in rated:
        key = (one.user, one.prompt, one.response, tuple(sorted(one.common.items())))
        together.setdefault(key, []).append(one)
    rows = []
    for same in together.values():
        first, value = same[0], float(np.mean([one.rating for one in same]))
        common: dict[str, Any] = {**first.common, "unfinished": _unfinished(same)}
        for bound in levels:
            passes = value >= bound - _ROUNDING
            limit = rating_threshold(bound)
            chosen, rejected = (first.response, limit) if passes else (limit, first.response)
            rows.append(Row(first.user, first.prompt, chosen, rejected, place=first.place, **common))
            if not passes:
                break
    return rows


def _unfinished(ratings: Sequence[Rated]) -> frozenset[str]:
    return frozenset(one.response for one in ratings if one.unfinished)


def _of_person(mine: list[Rated], gap: float, most: int, rng: np.random.Generator) -> list[Row]:
    together: dict[_Item, list[Rated]] = {}
    for one in mine:
        together.setdefault((one.prompt, one.response, tuple(sorted(one.common.items()))), []).append(one)
    value = {item: float(np.mean([one.rating for one in ratings])) for item, ratings in together.items()}
    rows: list[Row] = []
    for pool, items in _pools(list(together), rng).items():
        # Only responses to one prompt with the same labels are compared.
        groups: dict[tuple, list[_Item]] = {}
        for item in items:
            groups.setdefault((item[0], item[2]), []).append(item)
        made: dict[frozenset[_Item], Row] = {}
        for _ in range(_ROUNDS):
            for group in groups.values():
                order = [group[i] for i in rng.permutation(len(group))]
                for pair in zip(order[::2], order[1::2], strict=False):
                    worse, better = sorted(pair, key=value.__getitem__)
                    difference = value[better] - value[worse]
                    if difference > 0 and difference >= gap - _ROUNDING and frozenset(pair) not in made:
                        first = together[better][0]
                        unfinished = _unfinished(together[better]) | _unfinished(together[worse])
                        common: dict[str, Any] = {**first.common, "pool": pool, "unfinished": unfinished}
                        made[frozenset(pair)] = Row(
                            first.user, better[0], better[1], worse[1], (), place=first.place, **common
                        )
            if len(made) >= most:
                break
        rows += list(made.values())[:most]
    return rows


def _pools(items: list[_Item], rng: np.random.Generator) -> dict[str, list[_Item]]:
    """The rated responses by pool: as the rows say, or halves of the prompts, or of the responses to one prompt."""
    named = [dict(item[2]).get("pool", "") for item in items]
    if not any(named):
        prompts = list(dict.fromkeys(item[0] for item in items))
        several = [prompt for prompt in prompts if sum(item[0] == prompt for item in items) > 1]
        keys = [item[0] if len(several) > 1 else item[1] for item in items]
        distinct = list(dict.fromkeys(keys))
        half = dict(zip(distinct, rng.permutation(len(distinct)) % 2, strict=True))
        named = [("context", "target")[half[key]] for key in keys]
    pools: dict[str, list[_Item]] = {}
    for item, pool in zip(items, named, strict=True):
        pools.setdefault(pool, []).append(item)
    return pools


def _rng(seed: int, user: str) -> np.random.Generator:
    """Randomness that does not depend on the order of the people."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}:{user}".encode()).digest()[:8], "big"))
