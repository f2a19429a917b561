"""Attention over sequences: one function, whose implementation is chosen at compile time."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from fssa_jax.ops._checks import check_shapes
from fssa_jax.ops._products import float32_product

Implementation = Literal["auto", "xla", "cudnn", "splash"]


def attention(
    query: Float[ArrayLike, "batch t heads d"],
    key: Float[ArrayLike, "batch s groups d"],
    value: Float[ArrayLike, "batch s groups d"],
    *,
    positions: Int[ArrayLike, "batch t"] | None = None,
    lengths: Int[ArrayLike, " batch"] | None = None,
    segments: Int[ArrayLike, "batch t"] | None = None,
    causal: bool = True,
    window: int | Int[Array, ""] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: Implementation = "xla",
) -> Float[Array, "batch t heads d"]:
    """softmax(softcap · tanh(scale · Q Kᵀ / softcap)) V; the softmax is in float32.

    Sequences are padded on the right, and key j of a row is at position j, also in a cache. A causal query at position
    p attends to the keys j ≤ p, with a window to those with p − window < j ≤ p. A real query thus never attends to
    padding. Query heads are shared evenly among the groups of key and value.

    Args:
      positions: of the queries; 0, 1, … by default.
      lengths: number of real keys per row; masks padding if attention is not causal.
      segments: of the tokens, where several sequences with a common beginning share a row: a token attends to those of
        segment 0, the beginning, and of its own segment. Needs `positions`, which are then those of the keys, too.
      window: number of keys that a query attends to, including itself; None for all. May be traced with "xla".
      scale: 1/√d by default.
      softcap: cap of the attention logits; None for none.
      implementation: "xla" everywhere; "cudnn" on NVIDIA GPUs in half precision, "splash" (Pallas) on TPUs. Neither
        of the latter supports `positions` or a traced window, and cudnn does not support a softcap. "auto" is cudnn
        where the first device is an NVIDIA GPU of compute capability 8.0 or more and cudnn supports the arguments
        (half precision, head size ≤ 128 and a multiple of 8, no softcap), else xla.

    In half precision it has no forward-mode derivative.

    Raises:
      ValueError: shapes that do not fit together, or an argument that the implementation does not support.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops.attention import attention
    >>> x = jnp.ones((1, 3, 4, 8))
    >>> attention(x, x[:, :, :2], x[:, :, :2]).shape
    (1, 3, 4, 8)
    """
    check_shapes(
        query=(query, "batch t heads d"),
        key=(key, "batch s groups d"),
        value=(value, "batch s groups d"),
        **({} if positions is None else {"positions": (positions, "batch t")}),
        **({} if lengths is None else {"lengths": (lengths, "batch")}),
        **({} if segments is None else {"segments": (segments, "batch t")}),
        **({} if window is None else {"window": (window, "")}),
    )
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    positions = None if positions is None else jnp.asarray(positions)
    lengths = None if lengths is None else jnp.asarray(lengths)
    segments = None if segments is None else jnp.asarray(segments)
    heads, groups = query.shape[2], key.shape[2]
    if heads % groups:
        raise ValueError(f"{heads} heads cannot share {groups} groups of key and value evenly")
    if window is not None and not causal:
        raise ValueError("a window needs causal attention")
    if segments is not None and (positions is None or not causal or query.shape[1] != key.shape[1]):
        raise ValueError("segments need causal attention among the tokens of a row, and their positions")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    fixed = positions is None and (window is None or isinstance(window, int))
    if implementation == "auto":
        plain = not fixed or attention_is_xla(implementation, query.dtype, query.shape[-1], softcap)
        implementation = "xla" if plain else "cudnn"
    if implementation == "xla":
        return _xla(query, key, value, positions, lengths, segments, causal, window, scale, softcap)
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be one of {', '.join(get_args(Implementation))}; got {implementation!r}")
    if positions is not None or not (window is None or isinstance(window, int)):
        raise ValueError(f"{implementation}: neither positions nor a traced window are supported; use 'xla'")
    if implementation == "splash":
        if query.shape[1] % 128 or key.shape[1] % 128:
            raise ValueError(f"splash: lengths must be multiples of 128, got {query.shape[1]} and {key.shape[1]}")
        return _splash(query, key, value, lengths, causal, window, scale, softcap)
    if softcap is not None:
        raise ValueError("cudnn: no softcap; use 'xla'")
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        is_causal=causal,
        key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )


def attention_is_xla(implementation: Implementation, dtype: Any, head_dim: int, softcap: float | None = None) -> bool:
    """Whether `attention` of whole sequences is XLA's, with these arguments on the first device.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops.attention import attention_is_xla
    >>> attention_is_xla("auto", jnp.float32, head_dim=64), attention_is_xla("splash", jnp.float32, head_dim=64)
    (True, False)
    """
    if implementation != "auto":
        return implementation == "xla"
    if softcap is not None or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16) or head_dim % 8 or head_dim > 128:
        return True
    # AMD's capabilities are no numbers, such as gfx90a.
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    taken = capability.replace(".", "", 1).isdigit() and float(capability) >= 8
    return jax.default_backend() != "gpu" or not taken


def _xla(query, key, value, positions, lengths, segments, causal, window, scale, softcap):
    batch, t, heads, d = query.shape
    s, groups = key.shape[1], key.shape[2]
    each = heads // groups
    # Heads that share a group are rows of one matrix: (batch, group, head · t, d).
    q = query.reshape(batch, t, groups, each, d).transpose(0, 2, 3, 1, 4).reshape(batch, groups, each * t, d)
    k, v = key.swapaxes(1, 2), value.swapaxes(1, 2)
    scores = float32_product("bgtd,bgsd->bgts", q, k) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = jnp.ones((1, 1, s), bool)
    place = (jnp.arange(s)[None] if segments is None else positions)[:, None, :]
    if causal:
        at = (jnp.arange(t)[None] if positions is None else positions)[:, :, None]
        mask = place <= at
        if window is not None:
            mask &= place > at - window
    if segments is not None:
        theirs = segments[:, None, :]
        mask &= (theirs == 0) | (theirs == segments[:, :, None])
    if lengths is not None:
        mask = mask & (place < lengths[:, None, None])
    scores = scores.reshape(batch, groups, each, t, s)
    # A finite floor: a row of padding only must not become NaN.
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    # softmax(S) V with the division last, on d numbers per row instead of s.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1)[..., None]
    weights = weights.astype(v.dtype).reshape(batch, groups, each * t, s)
    out = float32_product("bgts,bgsd->bgtd", weights, v)
    out = (out.reshape(batch, groups, each, t, d) / total).astype(query.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, t, heads, d)


def _splash(query, key, value, lengths, causal, window, scale, softcap, interpret=False):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    t, s, heads = query.shape[1], key.shape[1], query.shape[2]
    if window is not None:
        mask = masks.LocalMask((t, s), (window - 1, 0), 0)
    else:
        mask = masks.CausalMask((t, s)) if causal else masks.FullMask((t, s))
    run: Any = kernel.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * heads), attn_logits_soft_cap=softcap, interpret=interpret
    )
    repeat = heads // key.shape[2]
    q, k, v = (x.swapaxes(1, 2) for x in (query * scale, key, value))
    k, v = (jnp.repeat(x, repeat, axis=1) for x in (k, v))
    if lengths is None:
        out = jax.vmap(lambda q, k, v: run(q, k, v))(q, k, v)
    else:
        # Padding is a separate segment: no real query attends to its keys.
        def one(q, k, v, length):
            padding = [(jnp.arange(n) >= length).astype(jnp.int32) for n in (t, s)]
            return run(q, k, v, segment_ids=kernel.SegmentIds(*padding))

        out = jax.vmap(one)(q, k, v, lengths)
    return out.swapaxes(1, 2)
