"""Drawing episodes from a table of choices: pure functions of a key that run inside jit."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from fssa_jax.ops._checks import check_shapes
from fssa_jax.types import ChoiceTable, Comparisons, Episode


def nested_order(key: Key[Array, ""], count: Int[ArrayLike, ""], rows: int) -> Int[Array, " rows"]:
    """A random order of `rows` row numbers with the `count` real ones first.

    Its first k numbers are, for every k, a random subset of the real rows, and these subsets are nested.

    >>> import jax
    >>> from fssa_jax.ops import nested_order
    >>> order = nested_order(jax.random.key(0), 3, rows=5).tolist()
    >>> sorted(order[:3]), order[3:]
    ([0, 1, 2], [3, 4])
    """
    check_shapes(key=(key, ""), count=(count, ""))
    real = jnp.arange(rows) < count
    return jnp.argsort(jnp.where(real, jax.random.uniform(key, (rows,)), 2.0))


def take_choices(
    table: ChoiceTable,
    user: Int[ArrayLike, ""],
    pool: Int[ArrayLike, ""],
    order: Int[ArrayLike, " n"],
    number: Int[ArrayLike, ""],
) -> Comparisons:
    """The first `number` choices of a user's pool in the given order, as ids of texts.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import take_choices
    >>> from fssa_jax.types import ChoiceTable
    >>> ids = jnp.arange(6).reshape(1, 2, 3)
    >>> table = ChoiceTable(ids, ids + 10, jnp.full((1, 2), 3), jnp.zeros(1, int))
    >>> choices = take_choices(table, user=0, pool=1, order=jnp.array([2, 0, 1]), number=2)
    >>> choices.chosen.tolist(), choices.mask.tolist()
    ([5, 3, 4], [True, True, False])
    """
    table = _checked(table)
    check_shapes(user=(user, ""), pool=(pool, ""), order=(order, "n"), number=(number, ""))
    order = jnp.asarray(order)
    real = jnp.arange(order.shape[0]) < jnp.minimum(number, table.count[user, pool])
    weight = None if table.weight is None else table.weight[user, pool][order]
    choices = Comparisons(table.chosen[user, pool][order], table.rejected[user, pool][order], real, weight=weight)
    if table.others is None:
        return choices
    others = table.others[user, pool][order]
    return dataclasses.replace(choices, others=jnp.maximum(others, 0), listed=others >= 0)


def draw_episode(
    key: Key[Array, ""],
    table: ChoiceTable,
    *,
    max_context: int,
    max_targets: int,
    min_context: int = 0,
    swap_pools: bool = True,
) -> Episode:
    """A random user with k ~ U{min_context..max_context} context choices and up to max_targets targets.

    Context and targets come from different pools of the user, so they share no text. With `swap_pools` either pool may
    serve as the context, which doubles the number of episodes. Each user has its own k; a user with fewer than k rows
    shows all of them.

    Args:
      key: a typed PRNG key. The episode is a function of it and of the table.
      table: choices of the users to draw from, (users, 2, rows).
      max_context, max_targets: sizes of the padded context and targets, at most `rows` each.
      min_context: the smallest k, at most max_context.

    Returns:
      An `Episode` of text ids, without batch axis. `jax.vmap` over keys gives a batch.

    Raises:
      ValueError: a size is larger than the number of rows, min_context is not in [0, max_context], or arrays of the
        table do not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax import ChoiceTable, draw_episode
    >>> ids = jnp.arange(4 * 2 * 6).reshape(4, 2, 6)  # 4 users, 2 pools, 6 choices each
    >>> table = ChoiceTable(ids, ids + 100, jnp.full((4, 2), 6), jnp.zeros(4, int))
    >>> batch = jax.vmap(lambda key: draw_episode(key, table, max_context=3, max_targets=5))(
    ...     jax.random.split(jax.random.key(0), 8))
    >>> batch.context.chosen.shape, batch.targets.chosen.shape
    ((8, 3), (8, 5))
    """
    check_shapes(key=(key, ""))
    table = _checked(table)
    rows = table.chosen.shape[2]
    if max(max_context, max_targets) > rows:
        raise ValueError(f"max_context {max_context} and max_targets {max_targets} must be ≤ {rows} rows")
    if not 0 <= min_context <= max_context:
        raise ValueError(f"min_context {min_context} must be in [0, {max_context}]")
    key_user, key_pool, key_k, key_context, key_targets = jax.random.split(key, 5)
    user = jax.random.randint(key_user, (), 0, table.chosen.shape[0])
    pool = jax.random.bernoulli(key_pool, 0.5 if swap_pools else 0.0).astype(jnp.int32)
    k = jax.random.randint(key_k, (), min_context, max_context + 1)
    context_order = nested_order(key_context, table.count[user, pool], rows)[:max_context]
    target_order = nested_order(key_targets, table.count[user, 1 - pool], rows)[:max_targets]
    return Episode(
        context=take_choices(table, user, pool, context_order, k),
        targets=take_choices(table, user, 1 - pool, target_order, jnp.array(max_targets)),
        user=user,
        group=table.group[user],
    )


def evaluation_episode(
    key: Key[Array, ""], table: ChoiceTable, user: Int[ArrayLike, ""], *, max_context: int
) -> Episode:
    """All targets of one user and the longest context, whose first k rows are the context of size k.

    The targets do not depend on the key or on k, and the contexts are nested: curves over k are comparable.

    Args:
      key: PRNG key for the random order of the context.
      table: choices, (users, 2, rows).
      user: a row of the table.
      max_context: size of the padded context.

    Raises:
      ValueError: arrays of the table do not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax import ChoiceTable, evaluation_episode
    >>> ids = jnp.arange(1 * 2 * 6).reshape(1, 2, 6)
    >>> table = ChoiceTable(ids, ids + 100, jnp.full((1, 2), 6), jnp.zeros(1, int))
    >>> evaluation_episode(jax.random.key(0), table, 0, max_context=3).targets.chosen.tolist()
    [6, 7, 8, 9, 10, 11]
    """
    check_shapes(key=(key, ""), user=(user, ""))
    table, user = _checked(table), jnp.asarray(user)
    rows = table.chosen.shape[2]
    context, targets = jnp.array(0), jnp.array(1)
    order = nested_order(key, table.count[user, 0], rows)[:max_context]
    return Episode(
        context=take_choices(table, user, context, order, jnp.array(max_context)),
        targets=take_choices(table, user, targets, jnp.arange(rows), jnp.array(rows)),
        user=user,
        group=table.group[user],
    )


def truncate_context(episode: Episode, k: Int[ArrayLike, ""]) -> Episode:
    """The episode with only the first k choices of every context.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import truncate_context
    >>> from fssa_jax.types import Comparisons, Episode
    >>> choices = Comparisons(jnp.array([1, 2, 3]), jnp.array([4, 5, 6]), jnp.array([True, True, True]))
    >>> truncate_context(Episode(choices, choices, 0, 0), 1).context.mask.tolist()
    [True, False, False]
    """
    context = episode.context
    check_shapes(mask=(context.mask, "*batch n"), k=(k, ""))
    first = jnp.arange(context.mask.shape[-1]) < k
    mask = context.mask & jnp.broadcast_to(first, context.mask.shape)
    return dataclasses.replace(episode, context=dataclasses.replace(context, mask=mask))


def _checked(table: ChoiceTable) -> ChoiceTable:
    """The table as JAX arrays, which traced numbers can index; its shapes are checked."""
    check_shapes(
        chosen=(table.chosen, "users 2 rows"),
        rejected=(table.rejected, "users 2 rows"),
        count=(table.count, "users 2"),
        group=(table.group, "users"),
        **({} if table.others is None else {"others": (table.others, "users 2 rows a")}),
        **({} if table.weight is None else {"weight": (table.weight, "users 2 rows")}),
    )
    return jax.tree.map(jnp.asarray, table)
