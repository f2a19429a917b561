"""The people who are scored, and their episodes: the same for every predictor."""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fssa_jax.data.dataset import Split
from fssa_jax.errors import UserError
from fssa_jax.ops.episodes import evaluation_episode
from fssa_jax.types import ChoiceTable, Episode

FEW_GROUPS = 12


@partial(jax.jit, static_argnames="max_context")
def evaluation_episodes(
    seed: int | Array, draw: int | Array, table: ChoiceTable, users: Array, *, max_context: int
) -> Episode:
    """Episodes of users, stacked on a first axis: every draw has the same targets and new contexts."""
    key = jax.random.fold_in(jax.random.key(seed), draw)
    keys = jax.vmap(partial(jax.random.fold_in, key))(users)
    return jax.vmap(partial(evaluation_episode, max_context=max_context), in_axes=(0, None, 0))(keys, table, users)


def episodes_of(split: Split, users: np.ndarray, seed: int, max_context: int) -> Episode:
    """Targets and the first draw of contexts for users of a split."""
    return evaluation_episodes(
        seed, 0, jax.tree.map(jnp.asarray, split.table), jnp.asarray(users), max_context=max_context
    )


def reached(ks: Sequence[int], splits: Iterable[Split]) -> tuple[int, ...]:
    """The k that at least half of the people of every split have context choices for; 0 always.

    >>> import numpy as np
    >>> from fssa_jax.data.dataset import Split, make_table
    >>> people = [[np.zeros((rows, 2), int), np.zeros((1, 2), int)] for rows in (1, 4, 6)]
    >>> from fssa_jax.evaluate.episodes import reached
    >>> reached((0, 1, 3, 5), [Split(["a", "b", "c"], make_table(people, [0, 0, 0]))])
    (0, 1, 3)
    """
    counts = [np.asarray(split.table.count) for split in splits]
    lengths = [count[count[:, 1] > 0, 0] for count in counts]
    return tuple(k for k in ks if k == 0 or all((of_split >= k).mean() >= 0.5 for of_split in lengths if len(of_split)))


def eligible_users(split: Split, k: int) -> tuple[np.ndarray, list[str]]:
    """Indices of the users with at least k context choices and a target, and the names of the others.

    Raises:
      UserError: no user is eligible.
    """
    count = np.asarray(split.table.count)
    fit = (count[:, 0] >= k) & (count[:, 1] > 0)
    if not fit.any():
        longest = count[count[:, 1] > 0, 0].max(initial=0)
        raise UserError(
            f"config.evaluate.k: {k} is larger than any context; the longest has {longest} choices. "
            f"Give k up to {longest}, or more rows per user"
        )
    return np.flatnonzero(fit), [split.users[i] for i in np.flatnonzero(~fit)]


def first_users(split: Split, users: np.ndarray, number: int | None) -> np.ndarray:
    """The first `number` users; if there are few groups, the same ranks within each group."""
    if number is None or len(users) <= number:
        return users
    group = np.asarray(split.table.group)[users]
    if len(np.unique(group)) > FEW_GROUPS:
        return users[:number]
    rank = np.zeros(len(users), int)
    for g in np.unique(group):
        rank[group == g] = np.arange((group == g).sum())
    return np.sort(users[np.argsort(rank, kind="stable")[:number]])
