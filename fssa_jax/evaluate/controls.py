"""Control contexts that are uninformative about a person: any effect is bias, or comes from counting choices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.types import Comparisons, Episode


def other_owners(rng: np.random.Generator, group: np.ndarray) -> np.ndarray:
    """(users,) a random other member of each user's group, or of any group for a user who is alone in theirs."""
    users = len(group)
    owner = np.arange(users)
    for g in np.unique(group):
        members = rng.permutation(np.flatnonzero(group == g))
        owner[members] = np.roll(members, 1)
    alone = np.flatnonzero(owner == np.arange(users))
    if users > 1:
        owner[alone] = (alone + rng.integers(1, users, len(alone))) % users
    return owner


def scrambled_context(context: Comparisons, seed: int) -> Comparisons:
    """Contexts of the same sizes in which every choice comes from an independently drawn person."""
    rng = np.random.default_rng(seed)
    users, n = context.mask.shape
    owner = np.stack([rng.permutation(users) for _ in range(n)] or [np.zeros(users, int)], axis=1)[:, :n]
    place = np.broadcast_to(np.arange(n), owner.shape)
    mixed = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[owner, place]), context)
    return dataclasses.replace(mixed, mask=context.mask & mixed.mask)


def contradicted_context(context: Comparisons) -> Comparisons:
    """Contexts of 2n choices between two, each choice followed by its reverse.

    In a model without a population reward their evidence cancels out. Of choices of one among more, the first response
    that was not chosen is taken.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Comparisons
    >>> from fssa_jax.evaluate.controls import contradicted_context
    >>> both = contradicted_context(Comparisons(jnp.array([[3, 5]]), jnp.array([[4, 6]]), jnp.ones((1, 2), bool)))
    >>> both.chosen.tolist(), both.rejected.tolist()
    ([[3, 4, 5, 6]], [[4, 3, 6, 5]])
    """
    chosen, rejected = context.chosen, context.rejected

    def in_turn(a, b):
        return jnp.stack([a, b], axis=2).reshape(a.shape[0], 2 * a.shape[1], *a.shape[2:])

    return Comparisons(
        in_turn(chosen, rejected),
        in_turn(rejected, chosen),
        jnp.asarray(in_turn(context.mask, context.mask)),
        weight=None if context.weight is None else in_turn(context.weight, context.weight),
    )


def with_contexts_of(episode: Episode, owner: np.ndarray) -> Episode:
    """The episodes with exchanged contexts: user i gets the context of user `owner[i]`."""
    return dataclasses.replace(episode, context=jax.tree.map(lambda x: x[owner], episode.context))
