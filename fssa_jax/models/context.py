"""Contexts, and the contract of encoders.

An encoder is a module that maps the choices of each person to q(z | C):

* Neither the order of the choices nor padding changes q.
* An empty context gives a finite q with finite gradients.
* `gaussian` states whether a model samples z from q or uses its mean.

`SetEncoder` learns how to read a set of features. `BayesEncoder` conditions a learnt prior on encoded responses.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fssa_jax.types import Comparisons

# A posterior narrower than this is a point in practice; the bound keeps its KL divergence finite.
MIN_SCALE = 1e-4


def check_context(context: Comparisons, **pairs: Array | None) -> None:
    """Checks the shapes of a context.

    Args:
      context: choices, chosen and rejected (*batch, n, d), mask (*batch, n); others (*batch, n, a, d).
      pairs: values for (chosen, rejected, others), (*batch, n, 2 + a), by names of arguments; None if not given.

    Raises:
      ValueError: a wrong shape; the message states the wanted and the given one.
    """
    chosen, rejected, mask = context.chosen.shape, context.rejected.shape, context.mask.shape
    if len(chosen) < 2 or chosen != rejected:
        raise ValueError(f"chosen and rejected must both be (*batch, n, d), got {chosen} and {rejected}")
    if mask != chosen[:-1]:
        raise ValueError(f"mask must be {chosen[:-1]} for choices {chosen}, got {mask}")
    if context.weight is not None and context.weight.shape != mask:
        raise ValueError(f"weight must be {mask} for choices {chosen}, got {context.weight.shape}")
    more = 0
    if context.others is not None:
        others, listed = context.others.shape, getattr(context.listed, "shape", None)
        more = others[-2] if len(others) > 1 else 0
        if others != (*mask, more, chosen[-1]) or listed != (*mask, more):
            raise ValueError(
                f"others must be {(*mask, 'a', chosen[-1])} with listed {(*mask, 'a')} for choices {chosen}, "
                f"got {others} and {listed}"
            )
    for name, pair in pairs.items():
        if pair is not None and pair.shape != (*mask, 2 + more):
            raise ValueError(f"{name} must be {(*mask, 2 + more)} for choices {chosen}, got {pair.shape}")


_MANY = 1024  # choices, whose pairs would not fit into memory


def _sum_of_equals(ids: Int[Array, " n"], weight: Float[Array, " n"]) -> Float[Array, " n"]:
    """The sum of the weights of all entries with the same id, by sorting."""
    order = jnp.argsort(ids)
    ordered = ids[order]
    first = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] != ordered[:-1]])
    number = jnp.cumsum(first)
    sums = jax.ops.segment_sum(weight[order], number, num_segments=len(ids))
    return jnp.zeros(len(ids)).at[order].set(sums[number])


def count_repeats(context: Comparisons) -> Float[Array, "*batch n 2"]:
    """How often each response of a context of ids occurs on the same side, at least 1.

    A person who chose one response over five others has liked it once, not five times. Choices count by their weights.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Comparisons
    >>> from fssa_jax.models.context import count_repeats
    >>> context = Comparisons(jnp.array([7, 7]), jnp.array([1, 2]), jnp.array([True, True]))
    >>> count_repeats(context).tolist()  # response 7 was chosen twice
    [[2.0, 1.0], [2.0, 1.0]]
    """
    ids = jnp.stack([context.chosen, context.rejected], axis=-1)
    if ids.shape[-2] > _MANY:
        weight = context.mask if context.weight is None else jnp.where(context.mask, context.weight, 0)
        both = jnp.broadcast_to(weight[..., None], ids.shape).astype(jnp.float32)
        of_ids = jnp.vectorize(_sum_of_equals, signature="(n),(n)->(n)")
        counted = of_ids(jnp.moveaxis(ids, -1, -2), jnp.moveaxis(both, -1, -2))
        return jnp.maximum(jnp.moveaxis(counted, -2, -1), 1)
    same = (ids[..., :, None, :] == ids[..., None, :, :]) & context.mask[..., None, :, None]
    if context.weight is None:
        return jnp.maximum(same.sum(-2), 1).astype(jnp.float32)
    return jnp.maximum(jnp.where(same, context.weight[..., None, :, None], 0).sum(-2), 1)
