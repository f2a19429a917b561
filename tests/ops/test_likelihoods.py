"""BTL, DPL, thumbs and ratings: values against scipy, antisymmetry, and finite values and gradients at the extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fssa_jax import (
    btl_log_likelihood,
    dpl_log_likelihood,
    lapse_log_likelihood,
    rating_log_likelihood,
    thumb_log_likelihood,
)

REWARD = st.floats(-3e38, 3e38)
SCALE = st.floats(0, 3e18)
LINKS = ("probit", "logistic", "logistic_published")


@settings(max_examples=60, deadline=None)
@given(a=REWARD, b=REWARD)
def test_btl_is_finite_with_finite_gradients_for_any_rewards(a, b):
    value, gradient = jax.value_and_grad(btl_log_likelihood, argnums=(0, 1))(jnp.float32(a), jnp.float32(b))
    assert jnp.isfinite(value)
    assert value <= 0
    assert all(jnp.isfinite(g) for g in gradient)


@settings(max_examples=60, deadline=None)
@given(a=REWARD, s=SCALE, b=REWARD, t=SCALE, link=st.sampled_from(LINKS))
def test_dpl_is_finite_with_finite_gradients_for_any_rewards(a, s, b, t, link):
    arguments = [jnp.float32(x) for x in (a, s, b, t)]
    value, gradient = jax.value_and_grad(lambda *x: dpl_log_likelihood(*x, link), argnums=(0, 1, 2, 3))(*arguments)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(g) for g in gradient)


@settings(max_examples=30, deadline=None)
@given(a=st.floats(-20, 20), b=st.floats(-20, 20), s=st.floats(0.1, 5), link=st.sampled_from(LINKS))
def test_the_two_choices_have_probability_one_together(a, b, s, link):
    a, b, s = (jnp.float32(x) for x in (a, b, s))
    assert jnp.exp(btl_log_likelihood(a, b)) + jnp.exp(btl_log_likelihood(b, a)) == pytest.approx(1, abs=1e-5)
    dpl = jnp.exp(dpl_log_likelihood(a, s, b, s, link)) + jnp.exp(dpl_log_likelihood(b, s, a, s, link))
    assert dpl == pytest.approx(1, abs=1e-5)


def test_probit_link_is_the_exact_normal_distribution():
    t = np.linspace(-12, 12, 49)
    ones = jnp.full(t.shape, np.float32(2**-0.5))
    ours = dpl_log_likelihood(jnp.asarray(t, jnp.float32), ones, jnp.zeros(t.shape), ones)
    np.testing.assert_allclose(ours, norm.logcdf(t), rtol=2e-5, atol=5e-7)


def test_logistic_links_are_as_far_from_the_exact_one_as_they_are_said_to_be():
    t = jnp.linspace(-6, 6, 4001)
    half = jnp.full(t.shape, jnp.float32(2**-0.5))

    def probability(link):
        return jnp.exp(dpl_log_likelihood(t, half, jnp.zeros_like(t), half, link))

    exact = probability("probit")
    assert jnp.abs(probability("logistic") - exact).max() == pytest.approx(0.0177, abs=2e-4)
    assert jnp.abs(probability("logistic_published") - exact).max() == pytest.approx(0.0945, abs=2e-4)


def test_wrong_arguments_are_named():
    with pytest.raises((ValueError, TypeError), match="link"):
        dpl_log_likelihood(jnp.ones(1), jnp.ones(1), jnp.ones(1), jnp.ones(1), "probitt")
    with pytest.raises(ValueError, match=r"rejected: wanted the shape \(3,\) of chosen, or a scalar; got \(2,\)"):
        btl_log_likelihood(jnp.ones(3), jnp.ones(2))


def test_a_number_is_for_all_choices():
    rewards = np.array([0.5, -2.0])  # float64, as NumPy makes it
    out = btl_log_likelihood(rewards, 0)
    np.testing.assert_allclose(out, -np.logaddexp(0, -rewards), rtol=1e-6)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(btl_log_likelihood(1.0, rewards), btl_log_likelihood(np.ones(2), rewards), rtol=1e-6)
    assert btl_log_likelihood(2, 0).shape == ()
    ones = np.ones(2)
    np.testing.assert_allclose(dpl_log_likelihood(rewards, 1, 0, 1), dpl_log_likelihood(rewards, ones, 0 * ones, ones))
    assert btl_log_likelihood(jnp.ones(2, jnp.bfloat16), 0.5).dtype == jnp.bfloat16


LEVELS = 5


@settings(max_examples=30, deadline=None)
@given(r=st.floats(-20, 20), c=st.lists(st.floats(-20, 20), min_size=LEVELS - 1, max_size=LEVELS - 1))
def test_the_levels_have_probability_one_together(r, c):
    """Whatever the order of the thresholds."""
    reward, thresholds = jnp.full(LEVELS, jnp.float32(r)), jnp.broadcast_to(jnp.float32(c)[None], (LEVELS, LEVELS - 1))
    p = jnp.exp(rating_log_likelihood(reward, thresholds, jnp.arange(1, LEVELS + 1)))
    assert p.sum() == pytest.approx(1, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(r=REWARD, c=st.lists(REWARD, min_size=3, max_size=3), rating=st.integers(1, 4), up=st.booleans())
def test_thumbs_and_ratings_are_finite_with_finite_gradients_for_any_rewards(r, c, rating, up):
    def of_rating(r, c):
        return rating_log_likelihood(r, c, jnp.array(rating))

    def of_thumb(r, c):
        return thumb_log_likelihood(r, c[0], jnp.array(up))

    for function in (of_rating, of_thumb):
        value, gradient = jax.value_and_grad(function, argnums=(0, 1))(jnp.float32(r), jnp.float32(c))
        assert jnp.isfinite(value)
        assert value <= 0
        assert all(jnp.isfinite(g).all() for g in gradient)


def test_a_rating_is_a_product_of_choices_between_the_text_and_thresholds():
    """It passes those below its level, and fails at that of its own, if there is one."""
    rng = np.random.default_rng(0)
    reward, thresholds = rng.normal(size=3), rng.normal(size=(3, LEVELS - 1))
    for level in range(1, LEVELS + 1):
        expected = sum(np.asarray(btl_log_likelihood(reward, thresholds[:, i])) for i in range(level - 1))
        if level < LEVELS:
            expected = expected + btl_log_likelihood(thresholds[:, level - 1], reward)
        ours = rating_log_likelihood(reward, thresholds, np.full(3, level))
        np.testing.assert_allclose(ours, expected, rtol=1e-5)
    two = [rating_log_likelihood(reward, thresholds[:, :1], np.full(3, level)) for level in (2, 1)]
    for log_p, up in zip(two, (True, False), strict=True):
        np.testing.assert_allclose(thumb_log_likelihood(reward, thresholds[:, 0], np.full(3, up)), log_p, rtol=1e-6)


def test_lapses_bound_a_choice_from_below_and_are_learnt():
    log_p = jnp.array([-1e5, -3.0, -0.1, 0.0])
    np.testing.assert_array_equal(lapse_log_likelihood(log_p, 0.0), log_p)
    np.testing.assert_allclose(lapse_log_likelihood(log_p, 1.0, 4), np.log(0.25), rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(lapse_log_likelihood(log_p, 0.1, 5))[0], 0.02, rtol=1e-5)
    both = [jnp.exp(lapse_log_likelihood(jax.nn.log_sigmoid(x), 0.3)) for x in (1.7, -1.7)]
    assert sum(both) == pytest.approx(1)
    # The most likely ε of choices of which every fifth is at random, at known rewards.
    rng = np.random.default_rng(0)
    margins = 3 * rng.standard_normal(20_000)
    p = np.where(rng.random(20_000) < 0.2, 0.5, 1 / (1 + np.exp(-margins)))
    chosen = rng.random(20_000) < p
    signed = jnp.asarray(np.where(chosen, margins, -margins), jnp.float32)
    grid = np.arange(0.02, 0.5, 0.01)
    found = [float(lapse_log_likelihood(jax.nn.log_sigmoid(signed), e).sum()) for e in grid]
    assert abs(grid[int(np.argmax(found))] - 0.2) < 0.025
    gradient = jax.grad(lambda e, x: lapse_log_likelihood(x, e).sum(), argnums=(0, 1))(jnp.float32(0.02), log_p)
    assert all(np.isfinite(g).all() for g in gradient)
