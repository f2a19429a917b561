"""All responses of choices in one row, so that one pass encodes or scores them; and back."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fssa_jax.ops._checks import check_shapes
from fssa_jax.types import Comparisons


def responses_of(choices: Comparisons) -> Array:
    """All responses: those chosen, those rejected, and the others, (*batch, n (2 + a)) ids or (*batch, n (2 + a), d).

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Comparisons
    >>> from fssa_jax.ops import responses_of
    >>> three = Comparisons(jnp.array([1, 2]), jnp.array([3, 4]), jnp.ones(2, bool), jnp.array([[5], [6]]))
    >>> responses_of(three).tolist()
    [1, 2, 3, 4, 5, 6]
    """
    dims = "*batch n d" if choices.chosen.ndim > choices.mask.ndim else "*batch n"
    check_shapes(chosen=(choices.chosen, dims), rejected=(choices.rejected, dims), mask=(choices.mask, "*batch n"))
    axis = choices.mask.ndim - 1
    sides = [choices.chosen, choices.rejected]
    if choices.others is not None:
        n, a = choices.others.shape[axis : axis + 2]
        sides.append(choices.others.reshape(*choices.mask.shape[:axis], n * a, *choices.chosen.shape[axis + 1 :]))
    return jnp.concatenate(sides, axis=axis)


def per_choice(values: Array, choices: Comparisons) -> Array:
    """Values of `responses_of`, (*lead, n (2 + a)), by choice: (*lead, n, 2 + a), the chosen response first.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Comparisons
    >>> from fssa_jax.ops import per_choice
    >>> three = Comparisons(jnp.array([1, 2]), jnp.array([3, 4]), jnp.ones(2, bool), jnp.array([[5], [6]]))
    >>> per_choice(jnp.arange(6), three).tolist()
    [[0, 2, 4], [1, 3, 5]]
    """
    n = choices.mask.shape[-1]
    more = 0 if choices.others is None else choices.others.shape[choices.mask.ndim]
    check_shapes(values=(values, f"*lead {n * (2 + more)}"))
    pair = jnp.stack([values[..., :n], values[..., n : 2 * n]], axis=-1)
    if choices.others is None:
        return pair
    return jnp.concatenate([pair, values[..., 2 * n :].reshape(*values.shape[:-1], n, more)], axis=-1)


def offered(choices: Comparisons) -> Bool[Array, "*batch n a1"] | None:
    """Which responses besides the chosen one were offered, (*batch, n, 1 + a); None for choices between two.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Comparisons
    >>> from fssa_jax.ops import offered
    >>> ids, yes = jnp.array([1, 2]), jnp.array([True, True])
    >>> offered(Comparisons(ids, ids + 2, yes, ids[:, None], jnp.array([[True], [False]]))).tolist()
    [[True, True], [True, False]]
    """
    if choices.listed is None:
        return None
    check_shapes(mask=(choices.mask, "*batch n"))
    check_shapes(listed=(choices.listed, " ".join([*map(str, choices.mask.shape), "a"])))
    listed = jnp.asarray(choices.listed)
    return jnp.concatenate([jnp.ones((*listed.shape[:-1], 1), bool), listed], axis=-1)


def real_responses(choices: Comparisons) -> Bool[Array, "*batch n r"]:
    """Which responses of `per_choice` were offered; all of choices between two.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Comparisons
    >>> from fssa_jax.ops import real_responses
    >>> real_responses(Comparisons(jnp.array([1]), jnp.array([2]), jnp.array([True]))).tolist()
    [[True, True]]
    """
    more = offered(choices)
    first = jnp.ones((*choices.mask.shape, 1 if more is not None else 2), bool)
    return first if more is None else jnp.concatenate([first, more], axis=-1)


def responses_by_choice(choices: Comparisons) -> Int[Array, "*batch n r"]:
    """The ids of all responses by choice, the chosen one first, which also stands in for those that were not offered.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Comparisons
    >>> from fssa_jax.ops import responses_by_choice
    >>> ids, yes = jnp.array([1, 2]), jnp.array([True, True])
    >>> listed = jnp.array([[True], [False]])
    >>> responses_by_choice(Comparisons(ids, ids + 2, yes, jnp.array([[5], [0]]), listed)).tolist()
    [[1, 3, 5], [2, 4, 2]]
    """
    by_choice = per_choice(responses_of(choices), choices)
    return jnp.where(real_responses(choices), by_choice, by_choice[..., :1])


def choice_weights(choices: Comparisons) -> Float[Array, "*batch n"]:
    """The weight of every choice, 0 for padding.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Comparisons
    >>> from fssa_jax.ops import choice_weights
    >>> ids, mask = jnp.array([1, 2]), jnp.array([True, False])
    >>> choice_weights(Comparisons(ids, ids + 2, mask, weight=jnp.array([0.5, 1.0]))).tolist()
    [0.5, 0.0]
    """
    check_shapes(mask=(choices.mask, "*batch n"))
    mask = jnp.asarray(choices.mask)
    if choices.weight is None:
        return mask.astype(jnp.float32)
    check_shapes(mask=(choices.mask, "*batch n"), weight=(choices.weight, "*batch n"))
    return jnp.where(mask, jnp.asarray(choices.weight), 0)


def join_choices(a: Comparisons, b: Comparisons) -> Comparisons:
    """C ∪ T: the choices of both, as features (*batch, n, d) or as ids (*batch, n).

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Comparisons
    >>> from fssa_jax.ops import join_choices
    >>> one = Comparisons(jnp.array([1]), jnp.array([2]), jnp.array([True]))
    >>> join_choices(one, one).chosen.tolist()
    [1, 1]
    """
    check_shapes(mask_a=(a.mask[..., 0], "*batch"), mask_b=(b.mask[..., 0], "*batch"))
    axis = a.mask.ndim - 1
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=axis), a, b)
