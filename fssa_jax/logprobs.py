"""Log-probabilities of tokens over a big vocabulary, without ever holding all the logits."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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
    their logsumexp and the difference are float32, whatever the types of hidden and kernel. The backward pass
    computes the logits of a chunk again: memory is O(chunk · vocabulary), forward and backward.

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
    n = targets.shape[0]
    order = jnp.argsort(~mask, stable=True)
    chunks = -(-n // chunk)
    padding = chunks * chunk - n
    index = jnp.concatenate([order, jnp.zeros(padding, order.dtype)]).reshape(chunks, chunk)
    count = mask.sum()

    def score(at: Array) -> Array:
        logits = jnp.dot(hidden[at], kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        chosen = jnp.take_along_axis(logits, targets[at][:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    # The whole step is computed again, the choice to skip it too: else each chunk would keep a copy of the kernel.
    @partial(jax.checkpoint, prevent_cse=False)
    def step(_, inputs):
        at, start = inputs
        return None, jax.lax.cond(start < count, score, lambda at: jnp.zeros(chunk, jnp.float32), at)

    _, scores = jax.lax.scan(step, None, (index, jnp.arange(chunks) * chunk))
    flat = scores.reshape(-1)[:n]
    flat = jnp.where(jnp.arange(n) < count, flat, 0)
    return jnp.zeros(n, jnp.float32).at[order].set(flat)


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
        hidden[:, :-1].reshape(batch * (t - 1), d), kernel, tokens[:, 1:].reshape(-1), mask.reshape(-1),
        chunk=min(chunk, batch * (t - 1)), softcap=softcap,
    )  # fmt: skip
    return scores.reshape(batch, t - 1).sum(-1)
