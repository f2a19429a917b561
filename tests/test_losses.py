"""The three objectives of neural processes, and empty targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import DiagGaussian, gaussian_kl, latent_roles, neural_process_loss
from fssa_jax.losses import masked_mean

Q = {
    name: DiagGaussian(jnp.full(3, m), jnp.full(3, s))
    for name, m, s in [("c", 0.0, 1.0), ("t", 0.5, 0.4), ("u", 1.0, 0.3)]
}


def test_roles_of_the_three_objectives():
    standard = DiagGaussian(jnp.zeros(3), jnp.ones(3))
    expected = {"elbo": (Q["u"], Q["c"]), "published": (Q["c"], Q["t"]), "vpl": (Q["c"], standard)}
    for objective, (sampled, reference) in expected.items():
        roles = latent_roles(objective, Q["c"], Q["t"], Q["u"])
        for ours, theirs in zip(roles, (sampled, reference), strict=True):
            np.testing.assert_array_equal(ours.mean, theirs.mean)
            np.testing.assert_array_equal(ours.scale, theirs.scale)


@pytest.mark.parametrize(
    ("objective", "message"), [("elbo", "q_union"), ("published", "q_targets"), ("mse", "objective")]
)
def test_missing_or_unknown_roles_are_named(objective, message):
    with pytest.raises((ValueError, TypeError), match=message):
        latent_roles(objective, Q["c"])


def test_loss_is_the_masked_mean_plus_the_weighted_kl():
    log_p = jnp.log(jnp.array([[0.5, 0.25, 0.9], [0.5, 0.5, 0.1]]))
    out = neural_process_loss(log_p, jnp.array([True, True, False]), Q["u"], Q["c"], 0.5)
    nll = -np.mean(np.log([[0.5, 0.25], [0.5, 0.5]]))
    assert out.nll == pytest.approx(nll, rel=1e-5)
    assert out.kl == pytest.approx(float(gaussian_kl(Q["u"], Q["c"])), rel=1e-6)
    assert out.loss == pytest.approx(nll + 0.5 * float(out.kl), rel=1e-5)


def test_no_target_gives_zero_loss_and_zero_gradient():
    log_p = jnp.log(jnp.full((2, 3), 0.3))
    value, gradient = jax.value_and_grad(lambda x: neural_process_loss(x, jnp.zeros(3, bool)).loss)(log_p)
    assert value == 0
    assert not gradient.any()


def test_masked_values_do_not_count_even_if_not_finite():
    values = jnp.array([1.0, 3.0, jnp.nan])
    value, gradient = jax.value_and_grad(lambda x: masked_mean(x, jnp.array([True, True, False])))(values)
    assert value == 2
    np.testing.assert_array_equal(gradient, [0.5, 0.5, 0])
