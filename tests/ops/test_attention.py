"""Attention: against a loop in numpy, causal, windows, padding, groups, and the TPU kernel interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.ops.attention import _splash, attention, attention_is_xla


def qkv(seed=0, batch=2, t=6, s=6, heads=4, groups=2, d=8):
    rng = np.random.default_rng(seed)
    shapes = ((batch, t, heads, d), (batch, s, groups, d), (batch, s, groups, d))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def by_loop(query, key, value, allowed, scale, softcap):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros_like(query)
    batch, t, heads, _ = query.shape
    for b in range(batch):
        for i in range(t):
            for h in range(heads):
                g = h * key.shape[2] // heads
                keys = [j for j in range(key.shape[1]) if allowed(b, i, j)]
                scores = np.array([query[b, i, h] @ key[b, j, g] for j in keys]) * scale
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                weights = np.exp(scores - scores.max())
                out[b, i, h] = (weights / weights.sum()) @ value[b, keys, g]
    return out


_SEGMENTS = [[0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 2, 3]]
_PLACES = [[0, 1, 2, 3, 2, 3], [0, 1, 0, 1, 2, 0]]
CASES = {
    "causal": ({}, lambda b, i, j: j <= i),
    "window": ({"window": 3}, lambda b, i, j: i - 3 < j <= i),
    "softcap and scale": ({"softcap": 2.0, "scale": 0.7}, lambda b, i, j: j <= i),
    "everything": ({"causal": False}, lambda b, i, j: True),
    "lengths": ({"causal": False, "lengths": jnp.array([4, 6])}, lambda b, i, j: j < (4, 6)[b]),
    "positions": (
        {"positions": jnp.array([[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2]])},
        lambda b, i, j: j <= (i if b == 0 else i // 2),
    ),
    "segments": (
        {"segments": jnp.array(_SEGMENTS), "positions": jnp.array(_PLACES)},
        lambda b, i, j: j <= i and _SEGMENTS[b][j] in (0, _SEGMENTS[b][i]),
    ),
    "segments and a window": (
        {"segments": jnp.array(_SEGMENTS), "positions": jnp.array(_PLACES), "window": 2},
        lambda b, i, j: j <= i and _SEGMENTS[b][j] in (0, _SEGMENTS[b][i]) and _PLACES[b][j] > _PLACES[b][i] - 2,
    ),
}


@pytest.mark.parametrize(("arguments", "allowed"), CASES.values(), ids=CASES)
def test_xla_is_the_definition(arguments, allowed):
    q, k, v = qkv()
    out = attention(q, k, v, **arguments)
    expected = by_loop(q, k, v, allowed, arguments.get("scale", 8**-0.5), arguments.get("softcap"))
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"positions": jnp.arange(6)[None].repeat(2, 0), "causal": False}])
def test_segments_need_positions_and_causal_attention(arguments):
    with pytest.raises(ValueError, match="segments need causal attention among the tokens of a row, and their pos"):
        attention(*qkv(), segments=jnp.zeros((2, 6), int), **arguments)


def test_the_window_may_be_traced():
    q, k, v = qkv()
    traced = jax.jit(lambda w: attention(q, k, v, window=w))(3)
    np.testing.assert_allclose(traced, attention(q, k, v, window=3), atol=1e-6)


def test_no_query_sees_what_comes_after_it():
    """By gradient: the output at i does not depend on key or value at j > i."""
    q, k, v = qkv()
    jacobian = jax.jacobian(lambda x: attention(q, x, v).sum((0, 2, 3)) + attention(q, k, x).sum((0, 2, 3)))(k)
    reach = np.abs(np.asarray(jacobian)).sum((1, 3, 4))  # (query, key)
    assert (reach[np.triu_indices(6, 1)] == 0).all()
    assert (reach[np.tril_indices(6)] > 0).all()


def test_a_row_of_padding_alone_is_finite():
    q, k, v = qkv()
    out = attention(q, k, v, causal=False, lengths=jnp.array([0, 6]))
    assert np.isfinite(np.asarray(out)).all()


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_tpu_kernel_equals_xla(window, softcap):
    q, k, v = qkv(batch=1, t=128, s=128, heads=2, groups=1, d=128)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ours = _splash(q, k, v, None, True, window, 0.1, softcap, interpret=True)
    expected = attention(q, k, v, window=window, scale=0.1, softcap=softcap)
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_what_an_implementation_cannot_do_is_an_error():
    q, k, v = qkv()
    with pytest.raises(ValueError, match="cudnn: no softcap"):
        attention(q, k, v, softcap=3.0, implementation="cudnn")
    with pytest.raises(ValueError, match="splash: neither positions"):
        attention(q, k, v, positions=jnp.zeros((2, 6), int), implementation="splash")
    with pytest.raises(ValueError, match="multiples of 128"):
        attention(q, k, v, implementation="splash")
    with pytest.raises(ValueError, match="needs causal"):
        attention(q, k, v, window=3, causal=False)
    with pytest.raises(ValueError, match="4 heads cannot share 3"):
        attention(q, *qkv(groups=3)[1:])


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("window", [None, 16])
def test_cudnn_equals_xla(window):
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv(t=64, s=64, d=64))
    ours = attention(q, k, v, window=window, implementation="cudnn").astype(jnp.float32)
    np.testing.assert_allclose(ours, attention(q, k, v, window=window).astype(jnp.float32), atol=3e-2)


class Gpu:
    def __init__(self, capability: str):
        self.compute_capability = capability


@pytest.mark.parametrize(
    ("capability", "dtype", "d", "wanted"),
    [
        ("9.0", "bfloat16", 128, True),
        ("8.0", "float16", 64, True),
        ("7.5", "bfloat16", 64, False),
        ("gfx90a", "bfloat16", 64, False),
        ("9.0", "float32", 64, False),
        ("9.0", "bfloat16", 256, False),
        ("9.0", "bfloat16", 60, False),
    ],
)
def test_auto_is_cudnn_where_it_runs(monkeypatch, capability, dtype, d, wanted):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Gpu(capability)])
    assert attention_is_xla("auto", jnp.dtype(dtype), d) != wanted
    assert attention_is_xla("auto", jnp.dtype(dtype), d, softcap=30.0)
    assert attention_is_xla("xla", jnp.dtype(dtype), d)
    assert not attention_is_xla("cudnn", jnp.dtype(dtype), d)


def test_auto_is_xla_on_a_cpu():
    q, k, v = (jnp.asarray(np.random.default_rng(i).normal(size=(2, 6, 2, 8)), jnp.float32) for i in range(3))
    np.testing.assert_array_equal(attention(q, k, v, implementation="auto"), attention(q, k, v))
