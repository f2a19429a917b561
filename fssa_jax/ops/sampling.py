"""From logits to the next token: pure functions of arrays, one row per sequence."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from fssa_jax.ops._checks import check_shapes

_BLOCK = 256  # tokens of a block; about the square root of a large vocabulary


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The default is greedy.

    Attributes:
      temperature: 0 is greedy.
      top_k: sample only from the k most likely tokens; 0 for all.
      top_p: sample only from the most likely tokens whose probabilities sum to p; 1 for all.
      repetition_penalty: logits of tokens that occur in the row, prompt included, are divided (if positive) or
        multiplied (if negative) by it (arXiv 1909.05858); 1 for none.

    >>> from fssa_jax import Sampling
    >>> Sampling(temperature=0.7, top_p=0.9).top_k
    0
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        numbers = 0 <= self.temperature < math.inf and 0 < self.repetition_penalty < math.inf
        if not numbers or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature ≥ 0, top_k ≥ 0, 0 < top_p ≤ 1, repetition_penalty > 0; got {self}")


def penalise(
    logits: Float[ArrayLike, "batch vocabulary"], seen: Bool[ArrayLike, "batch vocabulary"], penalty: float
) -> Float[Array, "batch vocabulary"]:
    """Lowers the logits of seen tokens by the factor `penalty` (arXiv 1909.05858).

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import penalise
    >>> print(penalise(jnp.array([[4.0, -4.0, 4.0]]), jnp.array([[True, True, False]]), 2.0))
    [[ 2. -8.  4.]]
    """
    check_shapes(logits=(logits, "batch vocabulary"), seen=(seen, "batch vocabulary"))
    logits = jnp.asarray(logits)
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def restrict(
    logits: Float[ArrayLike, "batch vocabulary"], top_k: int, top_p: float
) -> Float[Array, "batch vocabulary"]:
    """Sets logits to −∞ outside the k most likely tokens and, among these, outside the nucleus (arXiv 1904.09751).

    The nucleus holds the most likely tokens whose probabilities sum to `top_p`. The most likely token is always kept.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import restrict
    >>> print(restrict(jnp.array([[1.0, 3.0, 2.0]]), top_k=2, top_p=1.0))
    [[-inf   3.   2.]]
    """
    check_shapes(logits=(logits, "batch vocabulary"))
    logits = jnp.asarray(logits)
    if top_k and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return _nucleus(logits, top_p) if top_p < 1 else logits


def _nucleus(logits: Float[Array, "batch vocabulary"], top_p: float) -> Float[Array, "batch vocabulary"]:
    """Keeps a token if those that are more likely have less than `top_p` together.

    The least logit that is kept is found by bisection, in 32 sums. XLA sorts ten times more slowly on a CPU.
    """
    p = jax.nn.softmax(logits, axis=-1)
    without_sign = jnp.where(logits == 0, 0.0, logits.astype(jnp.float32))  # −0 is not less than 0
    bits = jax.lax.bitcast_convert_type(without_sign, jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the logits

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # without overflow
        enough = jnp.where(order > middle[:, None], p, 0).sum(-1) < top_p
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    _, least = jax.lax.fori_loop(0, 32, halve, (order.min(-1), order.max(-1)))
    return jnp.where(order < least[:, None], -jnp.inf, logits)


def _draw(logits: Float[Array, " vocabulary"], key: Key[Array, ""]) -> Int[Array, ""]:
    """A token drawn from the softmax of logits: first a block of the vocabulary, then a token in it.

    Two random numbers per row take the place of one Gumbel variate per token, which costs more than the logits.
    """
    size = min(_BLOCK, logits.shape[-1])
    p = jnp.exp(logits.astype(jnp.float32) - logits.max())
    blocks = jnp.pad(p, (0, -len(p) % size)).reshape(-1, size)
    u = jax.random.uniform(key, (2,))

    def inverse(p: Array, u: Array) -> Array:
        total, possible = jnp.cumsum(p), p > 0  # sums that round up draw nothing impossible
        reached = possible & (total > u * total[-1])
        return jnp.where(reached.any(), jnp.argmax(reached), jnp.max(jnp.where(possible, jnp.arange(len(p)), 0)))

    block = inverse(blocks.sum(-1), u[0])
    return block * size + inverse(blocks[block], u[1])


def next_tokens(
    logits: Float[ArrayLike, "batch vocabulary"],
    keys: Key[Array, " batch"],
    seen: Bool[ArrayLike, "batch vocabulary"] | None,
    sampling: Sampling,
) -> Int[Array, " batch"]:
    """One token per row, each drawn with the row's own key.

    Args:
      logits: of the next token.
      keys: typed PRNG keys.
      seen: tokens that occur in the row; needed only for a repetition penalty.
      sampling: how tokens are chosen.

    Raises:
      ValueError: shapes that do not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax.ops.sampling import Sampling, next_tokens
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> next_tokens(jnp.array([[0.0, 3.0, 1.0], [5.0, 0.0, 0.0]]), keys, None, Sampling()).tolist()
    [1, 0]
    """
    check_shapes(logits=(logits, "batch vocabulary"), keys=(keys, "batch"))
    logits = jnp.asarray(logits)
    if seen is not None and sampling.repetition_penalty != 1:
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = restrict(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    return jax.vmap(_draw)(logits, keys).astype(jnp.int32)
