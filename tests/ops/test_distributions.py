"""Diagonal normals against scipy, and the KL divergence's defining properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fssa_jax import DiagGaussian, gaussian_kl, gaussian_log_prob, gaussian_sample

VECTOR = st.lists(st.floats(-5, 5), min_size=4, max_size=4)
POSITIVE = st.lists(st.floats(0.1, 5), min_size=4, max_size=4)


def gaussian(mean, scale):
    return DiagGaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32))


@settings(max_examples=30, deadline=None)
@given(VECTOR, POSITIVE, VECTOR)
def test_log_prob(mean, scale, value):
    ours = gaussian_log_prob(gaussian(mean, scale), jnp.asarray(value, jnp.float32))
    np.testing.assert_allclose(ours, norm.logpdf(value, mean, scale).sum(), rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(VECTOR, POSITIVE, VECTOR, POSITIVE)
def test_kl_is_positive_and_zero_only_for_the_same(mean, scale, other_mean, other_scale):
    q, p = gaussian(mean, scale), gaussian(other_mean, other_scale)
    assert gaussian_kl(q, p) >= -1e-4
    assert gaussian_kl(q, q) == pytest.approx(0, abs=1e-5)


def test_kl_is_the_mean_log_ratio_of_samples():
    q, p = gaussian([0.5, -1, 0, 2], [1, 0.5, 2, 1]), gaussian([0, 0, 1, 1], [1, 1, 1.5, 2])
    z = gaussian_sample(q, jax.random.normal(jax.random.key(0), (200_000, 4)))
    broadcast = [jax.tree.map(lambda x: jnp.broadcast_to(x[None], z.shape), d) for d in (q, p)]
    estimate = (gaussian_log_prob(broadcast[0], z) - gaussian_log_prob(broadcast[1], z)).mean()
    assert estimate == pytest.approx(float(gaussian_kl(q, p)), abs=0.02)


def test_sample_refuses_noise_of_another_shape():
    with pytest.raises(ValueError, match=r"a shape that ends in that of the distribution, \(3,\), got \(2, 4\)"):
        gaussian_sample(gaussian(np.zeros(3), np.ones(3)), jnp.zeros((2, 4)))
