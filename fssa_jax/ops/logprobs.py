"""Log-probabilities of tokens over a large vocabulary, without storing all logits."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from fssa_jax.ops._checks import check_shapes
from fssa_jax.ops._products import float32_product
from fssa_jax.types import PyTree


def token_log_probs(
    hidden: Float[ArrayLike, "*batch t d"],
    kernel: Float[ArrayLike, "d vocabulary"],
    targets: Int[ArrayLike, "*batch t"],
    mask: Bool[ArrayLike, "*batch t"],
    *,
    chunk: int = 256,
    softcap: float | None = None,
) -> Float[Array, "*batch t"]:
    """log softmax(hidden · kernel)[target] for the tokens where `mask` holds; 0 elsewhere.

    Masked-in tokens are packed and scored in chunks; empty chunks are skipped. Logits, their logsumexp and the
    difference are float32, whatever the types of hidden and kernel. Memory is O(chunk · vocabulary), forward and
    backward. If the output layer is frozen, the forward pass also computes the gradient with respect to hidden, one row
    per token, from the same logits. If it is trained, the backward pass recomputes the logits. Forward-mode
    differentiation is not supported.

    If `hidden` is on a mesh of n devices, tokens are packed within each n-th of the batch. A batch that is sharded over
    the mesh is then not moved, and each device scores its own tokens.

    Args:
      hidden: normed states of the tokens before the targets.
      kernel: the output layer.
      targets: ids of the tokens to score.
      mask: which tokens to score.
      chunk: tokens per chunk, in each n-th of the batch.
      softcap: cap of the logits (Gemma 2); None for none.

    Returns:
      Log-probabilities in nats, float32.

    Raises:
      ValueError: shapes that do not fit together.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import token_log_probs
    >>> mask = jnp.array([[True, False, True]])
    >>> print(token_log_probs(jnp.zeros((1, 3, 4)), jnp.ones((4, 8)), jnp.arange(3)[None], mask).round(3))
    [[-2.079  0.    -2.079]]
    """
    check_shapes(
        hidden=(hidden, "*batch t d"),
        kernel=(kernel, "d vocabulary"),
        targets=(targets, "*batch t"),
        mask=(mask, "*batch t"),
    )
    hidden, kernel, targets, mask = (jnp.asarray(x) for x in (hidden, kernel, targets, mask))
    shape, packs = mask.shape, _packs(hidden)
    tokens = mask.size // packs
    if not mask.size:
        return jnp.zeros(shape, jnp.float32)
    packed = hidden.reshape(packs, tokens, -1), kernel, targets.reshape(packs, tokens), mask.reshape(packs, tokens)
    return _log_probs(*packed, min(chunk, tokens), softcap).reshape(shape)


def _packs(hidden: Array) -> int:
    """Number of parts of the batch that are packed separately: each device holds whole parts."""
    mesh = jax.typeof(hidden).sharding.mesh
    devices = math.prod(size for axis, size in mesh.shape.items() if axis not in mesh.manual_axes)
    return math.gcd(math.prod(hidden.shape[:-2]), devices)


def _in_chunks(
    score: Callable[[Array], PyTree], mask: Bool[Array, "packs n"], chunk: int, checkpointed: bool = False
) -> PyTree:
    """Applies score(places (packs, chunk)), which returns one row per place, where `mask` holds; 0 elsewhere."""
    packs, n = mask.shape
    order = jnp.argsort(~mask, axis=1, stable=True)
    chunks = -(-n // chunk)
    index = jnp.pad(order, ((0, 0), (0, chunks * chunk - n))).reshape(packs, chunks, chunk).swapaxes(0, 1)
    count = mask.sum(1, keepdims=True)
    most = count.max()
    shapes = jax.eval_shape(score, index[0])

    def step(_, inputs):
        at, start = inputs
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return None, jax.lax.cond(start < most, score, lambda _: nothing, at)

    if checkpointed:
        # Recompute the whole step, including the decision to skip it: else each chunk would keep a copy of the kernel.
        step = jax.checkpoint(step, prevent_cse=False)
    _, scores = jax.lax.scan(step, None, (index, jnp.arange(chunks) * chunk))

    def back(x: Array) -> Array:
        flat = x.reshape(chunks, packs, chunk, *x.shape[2:]).swapaxes(0, 1)
        flat = flat.reshape(packs, chunks * chunk, *x.shape[2:])[:, :n]
        counts = (jnp.arange(n)[None] < count).reshape(packs, n, *(1,) * (flat.ndim - 2))
        flat = jnp.where(counts, flat, 0)
        return jax.vmap(lambda at, row: jnp.zeros_like(row).at[at].set(row))(order, flat)

    return jax.tree.map(back, scores)


def _take(rows: Shaped[Array, "packs n *rest"], at: Int[Array, "packs chunk"]) -> Shaped[Array, "places *rest"]:
    """The rows of each pack at its own places, concatenated; no pack reads from another."""
    return jax.vmap(lambda x, i: x[i])(rows, at).reshape(at.size, *rows.shape[2:])


def _logits(hidden: Array, kernel: Array, softcap: float | None) -> Float[Array, "m vocabulary"]:
    logits = float32_product("md,dv->mv", hidden, kernel.astype(hidden.dtype))
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _score(
    hidden: Float[Array, "m d"], kernel: Float[Array, "d vocabulary"], targets: Int[Array, " m"], softcap: float | None
) -> Float[Array, " m"]:
    logits = _logits(hidden, kernel, softcap)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _recomputed(hidden: Array, kernel: Array, targets: Array, mask: Array, chunk: int, softcap: float | None) -> Array:
    def score(at: Array) -> Array:
        return _score(_take(hidden, at), kernel, _take(targets, at), softcap)

    return _in_chunks(score, mask, chunk, checkpointed=True)


_log_probs = jax.custom_vjp(_recomputed, nondiff_argnums=(4, 5))


def _forward(hidden: Any, kernel: Any, targets: Any, mask: Any, chunk: int, softcap: float | None):
    """The value and the residuals of the backward pass: the gradient per token, or the inputs to recompute it."""
    trained = kernel.perturbed
    hidden, kernel, targets, mask = (x.value for x in (hidden, kernel, targets, mask))
    if trained:
        return _recomputed(hidden, kernel, targets, mask, chunk, softcap), (None, (hidden, kernel, targets, mask))

    def score(at: Array) -> tuple[Array, Array]:
        mine, target = _take(hidden, at), _take(targets, at)[:, None]
        logits = _logits(mine, kernel, softcap)
        total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        # d score / d logits = [v is the target] − p(v), and a token's score depends only on its own state. In one
        # expression, so that XLA reads the logits once.
        slope = (jnp.arange(logits.shape[1])[None] == target).astype(jnp.float32) - jnp.exp(logits - total)
        if softcap is not None:
            slope = slope * (1 - jnp.square(logits / softcap))
        slope = jnp.einsum("mv,dv->md", slope.astype(mine.dtype), kernel.astype(mine.dtype))
        return (jnp.take_along_axis(logits, target, axis=-1) - total)[:, 0], slope

    value, slope = _in_chunks(score, mask, chunk)
    return value, (slope, None)


def _backward(chunk: int, softcap: float | None, kept: Any, gradient: Array):
    slope, inputs = kept
    if inputs is None:
        wide = slope.astype(jnp.float32) * gradient[..., None]
        return wide.astype(slope.dtype), None, None, None
    hidden, kernel, targets, mask = inputs

    _, pull = jax.vjp(lambda h, k: _recomputed(h, k, targets, mask, chunk, softcap), hidden, kernel)
    return (*pull(gradient), None, None)


_log_probs.defvjp(_forward, _backward, symbolic_zeros=True)


def response_log_probs(
    hidden: Float[ArrayLike, "batch t d"],
    kernel: Float[ArrayLike, "d vocabulary"],
    tokens: Int[ArrayLike, "batch t"],
    starts: Int[ArrayLike, " batch"],
    ends: Int[ArrayLike, " batch"],
    *,
    chunk: int = 256,
    softcap: float | None = None,
) -> Float[Array, " batch"]:
    """log p(response | prompt) of each row: Σ over starts ≤ i < ends of log p(token i | tokens before i).

    The response is scored from its first token on; token i is predicted by the state at i − 1.

    Args:
      hidden: normed states of `tokens`.
      kernel: the output layer.
      tokens: prompt and response, padded on the right.
      starts, ends: first token of the response, and one past its last. Token 0 has no token before it and is never
        scored.
      chunk, softcap: see `token_log_probs`.

    Returns:
      One log-probability per row, in nats, float32.

    Raises:
      ValueError: shapes that do not fit together.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import response_log_probs
    >>> tokens = jnp.array([[5, 6, 7, 0]])  # a prompt of one token, a response of two, padding
    >>> log_p = response_log_probs(jnp.zeros((1, 4, 3)), jnp.ones((3, 8)), tokens, jnp.array([1]), jnp.array([3]))
    >>> print(f"{log_p[0]:.3f}")  # 2 log ⅛
    -4.159
    """
    check_shapes(
        hidden=(hidden, "batch t d"),
        kernel=(kernel, "d vocabulary"),
        tokens=(tokens, "batch t"),
        starts=(starts, "batch"),
        ends=(ends, "batch"),
    )
    hidden, tokens, starts, ends = (jnp.asarray(x) for x in (hidden, tokens, starts, ends))
    place = jnp.arange(1, tokens.shape[1])[None]
    mask = (place >= starts[:, None]) & (place < ends[:, None])
    scores = token_log_probs(hidden[:, :-1], kernel, tokens[:, 1:], mask, chunk=chunk, softcap=softcap)
    return scores.sum(-1)
