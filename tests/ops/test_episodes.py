"""Episodes: disjoint pools, a k of each user's own, nested contexts, and a batch that is a function of its key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import draw_episode, evaluation_episode
from fssa_jax.data.dataset import make_table
from fssa_jax.ops.episodes import truncate_context

# User u's context texts are 100u…, target texts 100u + 50…: any mixing shows.
COUNTS = [(6, 4), (2, 6), (0, 3), (5, 1)]


def table():
    def pool(u, p, n):
        ids = 100 * u + 50 * p + np.arange(2 * n)
        return ids[0::2], ids[1::2]

    choices = [[pool(u, p, n) for p, n in enumerate(counts)] for u, counts in enumerate(COUNTS)]
    return jax.tree.map(
        jnp.asarray, make_table([[np.stack(pool, -1) for pool in pools] for pools in choices], [0, 1, 1, 0])
    )


def draw_many(number, **settings):
    keys = jax.random.split(jax.random.key(0), number)
    return jax.vmap(lambda key: draw_episode(key, table(), **settings))(keys)


def test_context_and_targets_come_from_different_pools_of_one_user():
    batch = draw_many(300, max_context=4, max_targets=3)
    pools = []
    for side in (batch.context, batch.targets):
        for ids in (side.chosen, side.rejected):
            real = np.asarray(ids)[np.asarray(side.mask)]
            user = np.broadcast_to(np.asarray(batch.user)[:, None], side.mask.shape)[np.asarray(side.mask)]
            np.testing.assert_array_equal(real // 100, user)
        pool = np.where(np.asarray(side.mask), np.asarray(side.chosen) % 100 // 50, -1)
        pools.append(pool.max(1))
    both = (pools[0] >= 0) & (pools[1] >= 0)
    assert both.sum() > 100
    assert (pools[0][both] != pools[1][both]).all()
    assert set(pools[0][both]) == {0, 1}
    np.testing.assert_array_equal(batch.group, np.array([0, 1, 1, 0])[np.asarray(batch.user)])


def test_every_user_has_a_k_of_their_own_up_to_what_they_have():
    batch = draw_many(500, max_context=4, max_targets=3, swap_pools=False)
    k = np.asarray(batch.context.mask.sum(1))
    for user, (context, targets) in enumerate(COUNTS):
        mine = np.asarray(batch.user) == user
        assert set(k[mine]) == set(range(min(context, 4) + 1))
        assert (np.asarray(batch.targets.mask.sum(1))[mine] == min(targets, 3)).all()


def test_a_least_context_is_kept_as_far_as_a_user_has_choices():
    batch = draw_many(500, max_context=4, max_targets=3, min_context=3, swap_pools=False)
    k = np.asarray(batch.context.mask.sum(1))
    for user, (context, _) in enumerate(COUNTS):
        assert set(k[np.asarray(batch.user) == user]) == {min(context, 3), min(context, 4)}


def test_an_episode_has_no_row_twice():
    batch = draw_many(100, max_context=5, max_targets=4)
    for ids, mask in zip(np.asarray(batch.context.chosen), np.asarray(batch.context.mask), strict=True):
        assert len(set(ids[mask])) == mask.sum()


def test_a_batch_is_a_function_of_its_key():
    first, second = draw_many(8, max_context=4, max_targets=3), draw_many(8, max_context=4, max_targets=3)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_evaluation_contexts_are_nested_and_targets_fixed():
    key = jax.random.key(7)
    long = evaluation_episode(key, table(), jnp.array(0), max_context=6)
    short = evaluation_episode(key, table(), jnp.array(0), max_context=2)
    other = evaluation_episode(jax.random.key(8), table(), jnp.array(0), max_context=6)
    np.testing.assert_array_equal(long.context.chosen[:2], short.context.chosen)
    np.testing.assert_array_equal(long.targets.chosen, other.targets.chosen)
    assert not np.array_equal(long.context.chosen, other.context.chosen)
    assert truncate_context(long, 2).context.mask.sum() == 2
    assert (np.asarray(long.context.chosen) < 50).all()


def test_a_least_context_above_the_most_is_refused():
    with pytest.raises(ValueError, match=r"min_context 5 must be in \[0, 4\]"):
        draw_episode(jax.random.key(0), table(), max_context=4, max_targets=1, min_context=5)


def test_too_large_a_context_is_named():
    with pytest.raises(ValueError, match="max_context 9"):
        draw_episode(jax.random.key(0), table(), max_context=9, max_targets=1)
