"""A matrix factorisation of choices: the initial values of the learnt embeddings of texts.

It is fitted to the training users. Their latents are discarded afterwards; the factors and offsets of texts are kept.
The encoder and the reward model share them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from fssa_jax.ops._checks import check_shapes
from fssa_jax.types import ChoiceTable

# Precisions of the normal priors of factors and offsets; those of the users' latents are 1.
_FACTOR_PRECISION = 8.0
_OFFSET_PRECISION = 0.1


def observed_responses(table: ChoiceTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(user, text, liked): all texts that a user ever chose (1) or rejected (0), without duplicates.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import observed_responses
    >>> from fssa_jax.types import ChoiceTable
    >>> chosen, rejected = jnp.array([[[7], [7]]]), jnp.array([[[8], [9]]])  # one user, chose 7 over 8 and 9
    >>> user, text, liked = observed_responses(ChoiceTable(chosen, rejected, jnp.ones((1, 2), int), jnp.zeros(1, int)))
    >>> text.tolist(), liked.tolist()
    ([7, 8, 9], [1, 0, 0])
    """
    check_shapes(
        chosen=(table.chosen, "users 2 rows"), rejected=(table.rejected, "users 2 rows"), count=(table.count, "users 2")
    )
    real = np.asarray(table.mask)
    user = np.broadcast_to(np.arange(len(table.chosen))[:, None, None], real.shape)[real]
    ones = np.ones_like(user)
    sides = [(np.asarray(table.chosen)[real], ones), (np.asarray(table.rejected)[real], 0 * ones)]
    if table.others is not None:
        sides += [(other, 0 * ones) for other in np.asarray(table.others)[real].T]
    rows = np.concatenate([np.stack([user, text, liked])[:, text >= 0] for text, liked in sides], axis=1)
    user, text, liked = np.unique(rows, axis=1)
    return user, text, liked


@partial(jax.jit, static_argnames=("users", "texts", "width", "steps", "learning_rate"))
def factorise(
    key: Key[Array, ""],
    user: Int[ArrayLike, " n"],
    text: Int[ArrayLike, " n"],
    liked: Int[ArrayLike, " n"],
    *,
    users: int,
    texts: int,
    width: int,
    steps: int = 150,
    learning_rate: float = 3e-2,
) -> tuple[Float[Array, "texts width"], Float[Array, " texts"]]:
    """Factors F and offsets t of texts that explain which texts users like.

    p(u likes y) = σ(t_y + a_u + ⟨z_u, F_y⟩), maximum a posteriori under normal priors
    z, a ~ N(0, 1), F ~ N(0, 1/8), t ~ N(0, 10), by full-batch Adam. It is stopped early on purpose: `steps` is a
    regulariser like the priors.

    Args:
      key: PRNG key of the random init.
      user, text, liked: observations, as `observed_responses` returns them.
      users, texts: numbers of users and texts.
      width: size of each row of F and of z.

    Returns:
      F (texts, width) and t (texts,).

    Raises:
      ValueError: observations of different lengths.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax.ops.factorise import factorise
    >>> user, text, liked = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1]), jnp.array([1, 0, 1, 0])
    >>> factors, offsets = factorise(jax.random.key(0), user, text, liked, users=2, texts=2, width=3)
    >>> factors.shape, bool(offsets[0] > offsets[1])
    ((2, 3), True)
    """
    import optax  # the rest of the room needs only jax

    check_shapes(key=(key, ""), user=(user, "n"), text=(text, "n"), liked=(liked, "n"))
    key_f, key_z = jax.random.split(key)
    params = {
        "factors": 0.1 * jax.random.normal(key_f, (texts, width)),
        "latents": 0.1 * jax.random.normal(key_z, (users, width)),
        "offsets": jnp.zeros(texts),
        "leniency": jnp.zeros(users),
    }
    sign = (2 * jnp.asarray(liked) - 1).astype(jnp.float32)

    def loss(p: dict[str, Array]) -> Array:
        logit = p["offsets"][text] + p["leniency"][user] + (p["latents"][user] * p["factors"][text]).sum(-1)
        prior = (p["latents"] ** 2).sum() + _FACTOR_PRECISION * (p["factors"] ** 2).sum()
        prior += _OFFSET_PRECISION * (p["offsets"] ** 2).sum() + (p["leniency"] ** 2).sum()
        return (-jax.nn.log_sigmoid(sign * logit).sum() + 0.5 * prior) / sign.shape[0]

    optimizer = optax.adam(learning_rate)

    def update(carry, _):
        p, state = carry
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(jax.grad(loss)(p), state)
        return (optax.apply_updates(p, updates), state), None

    (fitted, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), None, length=steps)
    result: Any = fitted
    return result["factors"], result["offsets"]
