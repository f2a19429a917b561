"""Log-probabilities of tokens over a big vocabulary, without ever holding all the logits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fssa_jax.types import PyTree


def token_log_probs(
    hidden: Float[Array, "n d"],
    kernel: Float[Array, "d vocabulary"],
    targets: Int[Array, " n"],
    mask: Bool[Array, " n"],
    *,
    chunk: int = 256,
    softcap: float | None = None,
) -> Float[Array, " n"]:
    """log softmax(hidden · kernel)[target] for the tokens where `mask` holds; 0 elsewhere.

    The tokens that count are brought together and taken `chunk` at a time; chunks without any are skipped. Logits,
    their logsumexp and the difference are float32, whatever the types of hidden and kernel. Memory is
    O(chunk · vocabulary), forward and backward. Where the output layer is not trained the gradient with respect to
    hidden, one row a token, is made together with the value, from the same logits; where it is trained the backward
    pass computes them again. Forward-mode differentiation is not offered.

    Args:
      hidden: normed states of the tokens before the targets.
      kernel: the output layer.
      targets: ids of the tokens to score.
      mask: which of them count.
      chunk: tokens at a time.
      softcap: of the logits (Gemma 2).

    >>> import jax.numpy as jnp
    >>> from fssa_jax import token_log_probs
    >>> log_p = token_log_probs(jnp.zeros((3, 4)), jnp.ones((4, 8)), jnp.arange(3), jnp.array([True, False, True]))
    >>> print(log_p.round(3))
    [-2.079  0.    -2.079]
    """
    return _log_probs(hidden, kernel, targets, mask, chunk, softcap)


def _in_chunks(
    score: Callable[[Array], PyTree], mask: Bool[Array, " n"], chunk: int, checkpointed: bool = False
) -> PyTree:
    """score(index of `chunk` tokens), arrays with a row a token, for all tokens where `mask` holds; 0 elsewhere."""
    n = mask.shape[0]
    order = jnp.argsort(~mask, stable=True)
    chunks = -(-n // chunk)
    index = jnp.concatenate([order, jnp.zeros(chunks * chunk - n, order.dtype)]).reshape(chunks, chunk)
    count = mask.sum()
    shapes = jax.eval_shape(score, index[0])

    def step(_, inputs):
        at, start = inputs
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return None, jax.lax.cond(start < count, score, lambda _: nothing, at)

    if checkpointed:
        # The whole step is computed again, the choice to skip it too: else each chunk would keep a copy of the kernel.
        step = jax.checkpoint(step, prevent_cse=False)
    _, scores = jax.lax.scan(step, None, (index, jnp.arange(chunks) * chunk))

    def back(x: Array) -> Array:
        flat = x.reshape(chunks * chunk, *x.shape[2:])[:n]
        counts = (jnp.arange(n) < count).reshape(n, *(1,) * (flat.ndim - 1))
        return jnp.zeros_like(flat).at[order].set(jnp.where(counts, flat, 0))

    return jax.tree.map(back, scores)


def _score(
    hidden: Float[Array, "m d"], kernel: Float[Array, "d vocabulary"], targets: Int[Array, " m"], softcap: float | None
) -> Float[Array, " m"]:
    logits = jnp.dot(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _recomputed(hidden: Array, kernel: Array, targets: Array, mask: Array, chunk: int, softcap: float | None) -> Array:
    return _in_chunks(lambda at: _score(hidden[at], kernel, targets[at], softcap), mask, chunk, checkpointed=True)


_log_probs = jax.custom_vjp(_recomputed, nondiff_argnums=(4, 5))


def _forward(hidden: Any, kernel: Any, targets: Any, mask: Any, chunk: int, softcap: float | None):
    """The value, and what the backward pass needs: the slope of each token, or all that it is computed from again."""
    trained = kernel.perturbed
    hidden, kernel, targets, mask = (x.value for x in (hidden, kernel, targets, mask))
    if trained:
        return _recomputed(hidden, kernel, targets, mask, chunk, softcap), (None, (hidden, kernel, targets, mask))

    def score(at: Array) -> tuple[Array, Array]:
        value, pull = jax.vjp(lambda h: _score(h, kernel, targets[at], softcap), hidden[at])
        return value, pull(jnp.ones_like(value))[0]  # a token's score depends on its own state alone

    value, slope = _in_chunks(score, mask, chunk)
    return value, (slope, None)


def _backward(chunk: int, softcap: float | None, kept: Any, gradient: Array):
    slope, inputs = kept
    if inputs is None:
        wide = slope.astype(jnp.float32) * gradient[:, None]
        return wide.astype(slope.dtype), None, None, None
    hidden, kernel, targets, mask = inputs

    _, pull = jax.vjp(lambda h, k: _recomputed(h, k, targets, mask, chunk, softcap), hidden, kernel)
    return (*pull(gradient), None, None)


_log_probs.defvjp(_forward, _backward, symbolic_zeros=True)


def response_log_probs(
    hidden: Float[Array, "batch t d"],
    kernel: Float[Array, "d vocabulary"],
    tokens: Int[Array, "batch t"],
    starts: Int[Array, " batch"],
    ends: Int[Array, " batch"],
    *,
    chunk: int = 256,
    softcap: float | None = None,
) -> Float[Array, " batch"]:
    """log p(response | prompt) of each row: Σ over starts ≤ i < ends of log p(token i | tokens before i).

    The response is scored from its very first token, by the state one position before it.

    Args:
      hidden: normed states of `tokens`.
      kernel: the output layer.
      tokens: prompt and response, padded on the right.
      starts, ends: where the response begins, and one past its last token. Token 0 has nothing before it and
        is never scored.

    Returns:
      One log-probability a row, in nats, float32.
    """
    batch, t, d = hidden.shape
    if t < 2:  # nothing stands before the only token
        return jnp.zeros(batch, jnp.float32)
    place = jnp.arange(1, t)[None]
    mask = (place >= starts[:, None]) & (place < ends[:, None])
    scores = token_log_probs(
        hidden[:, :-1].reshape(batch * (t - 1), d),
        kernel,
        tokens[:, 1:].reshape(-1),
        mask.reshape(-1),
        chunk=min(chunk, batch * (t - 1)),
        softcap=softcap,
    )
    return scores.reshape(batch, t - 1).sum(-1)
