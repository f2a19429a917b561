"""Sampling: tokens come as often as they should, from the nucleus alone, and depend on nothing but their own row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fssa_jax.ops.sampling import Sampling, next_tokens, restrict

ROWS = 4000


def drawn(logits, sampling, seed=0):
    keys = jax.random.split(jax.random.key(seed), ROWS)
    return np.asarray(next_tokens(jnp.broadcast_to(logits[None], (ROWS, len(logits))), keys, None, sampling))


@pytest.mark.parametrize("size", [3, 256, 700])
def test_tokens_come_as_often_as_their_probability(size):
    logits = jax.random.normal(jax.random.key(size), (size,)) * 2
    counts = np.bincount(drawn(logits, Sampling(1.0)), minlength=size) / ROWS
    p = np.asarray(jax.nn.softmax(logits))
    error = np.abs(counts - p) / np.sqrt(p * (1 - p) / ROWS + 1e-9)
    likely = p > 5 / ROWS
    assert error[likely].max() < 5
    assert abs(counts[~likely].sum() - p[~likely].sum()) < 0.02


def test_the_two_numbers_of_a_draw_are_independent():
    """Blocks of equal mass, and tokens of equal mass in each: all come equally often together."""
    counts = np.bincount(drawn(jnp.zeros(512), Sampling(1.0)), minlength=512).reshape(2, 256)
    halves = counts.reshape(2, 2, 128).sum(-1) / ROWS
    np.testing.assert_allclose(halves, 0.25, atol=0.04)


def test_what_is_impossible_is_never_drawn():
    """Also at the end of a block, and where a single token is left."""
    logits = jnp.full(600, -jnp.inf).at[jnp.array([0, 255, 256, 511])].set(0.0)
    assert set(drawn(logits, Sampling(1.0)).tolist()) == {0, 255, 256, 511}
    one = jnp.full(600, -jnp.inf).at[300].set(-50.0)
    assert set(drawn(one, Sampling(0.5)).tolist()) == {300}


compiled = jax.jit(restrict, static_argnums=(1, 2))


def test_sums_that_round_up_draw_nothing_impossible():
    """Few tokens among many of probability 0, in every block."""
    logits = jnp.full(2560, -jnp.inf).at[jnp.arange(3, 2560, 13)].set(jnp.sin(jnp.arange(197.0)))
    assert (drawn(logits, Sampling(1.0)) % 13 == 3).all()


def by_sorting(logits, top_p):
    """The nucleus as it is defined: the most likely tokens until their probabilities sum to p."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-logits, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    least = logits[order][before < top_p].min()
    return np.where(logits < least, -np.inf, logits)


@given(st.lists(st.floats(-30, 30, width=16), min_size=1, max_size=40), st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.999]))
@settings(max_examples=60, deadline=None)
def test_the_nucleus_is_that_of_sorting(values, top_p):
    logits = np.asarray(values, np.float32)
    out = np.asarray(compiled(jnp.asarray(np.resize(logits, 40)[None]), 0, top_p))[0]
    wide = np.resize(logits, 40)
    expected = by_sorting(wide.astype(np.float64), top_p)
    if not np.array_equal(out, expected.astype(np.float32)):  # a sum at p itself may round to either side
        p = np.exp(wide - wide.max(), dtype=np.float64)
        more = np.array([p[wide > x].sum() for x in wide]) / p.sum()
        assert np.abs(more[(out == -np.inf) != (expected == -np.inf)] - top_p).max() < 1e-5


def test_the_most_likely_token_always_stays():
    assert restrict(jnp.array([[-3.0, 5.0, -jnp.inf]]), 0, 1e-6).tolist() == [[-np.inf, 5.0, -np.inf]]
