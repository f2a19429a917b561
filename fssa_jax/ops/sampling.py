"""From logits to the next token: pure functions of arrays, one row a sequence."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The default is greedy.

    Attributes:
      temperature: 0 is greedy.
      top_k: only the k likeliest tokens; 0 for all.
      top_p: only the likeliest tokens whose probabilities reach p together; 1 for all.
      repetition_penalty: logits of tokens that a row has, prompt included, are divided (if positive) or
        multiplied (if negative) by it (arXiv 1909.05858); 1 for none.
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
    logits: Float[Array, "batch vocabulary"], seen: Bool[Array, "batch vocabulary"], penalty: float
) -> Float[Array, "batch vocabulary"]:
    """Logits with those of seen tokens moved towards unlikely by the factor `penalty`."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def restrict(logits: Float[Array, "batch vocabulary"], top_k: int, top_p: float) -> Float[Array, "batch vocabulary"]:
    """−∞ for tokens beyond the k likeliest and, of these, beyond the nucleus of mass p (arXiv 1904.09751).

    The likeliest token is always kept.
    """
    if top_k and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1)[:, ::-1]
        p = jax.nn.softmax(ordered, axis=-1)
        inside = jnp.cumsum(p, axis=-1) - p < top_p
        least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def next_tokens(
    logits: Float[Array, "batch vocabulary"],
    keys: Key[Array, " batch"],
    seen: Bool[Array, "batch vocabulary"] | None,
    sampling: Sampling,
) -> Int[Array, " batch"]:
    """One token a row, each drawn with the row's own key.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax.ops.sampling import Sampling, next_tokens
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> next_tokens(jnp.array([[0.0, 3.0, 1.0], [5.0, 0.0, 0.0]]), keys, None, Sampling()).tolist()
    [1, 0]
    """
    if seen is not None and sampling.repetition_penalty != 1:
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = restrict(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
