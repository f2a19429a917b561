"""Solves from Cholesky factors, and their gradients, next to those of NumPy's algorithms."""

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.ops._cholesky import centred_sample, cholesky_solve, inverse_diagonal, inverse_factor


def assert_same(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


def test_solve_and_diagonal_and_their_gradients_match_numpy():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 5, 5)).astype(np.float32)
    matrix = jnp.asarray(root @ root.swapaxes(1, 2) + 5 * np.eye(5, dtype=np.float32))
    vector = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    factor = jnp.linalg.cholesky(matrix)
    ours = jax.grad(lambda m, v: (cholesky_solve(m, factor, v) ** 2).sum(), argnums=(0, 1))(matrix, vector)
    reference = jax.grad(lambda m, v: (jnp.linalg.solve(m, v[..., None]) ** 2).sum(), argnums=(0, 1))(matrix, vector)
    assert_same(ours, reference, atol=1e-4)
    slopes = jnp.arange(1.0, 6.0)[None]
    ours = jax.value_and_grad(lambda m: (slopes * inverse_diagonal(m, inverse_factor(factor, vector))).sum())(matrix)
    diagonal = lambda m: jnp.diagonal(jnp.linalg.inv(m), axis1=-2, axis2=-1)  # noqa: E731
    assert_same(ours, jax.value_and_grad(lambda m: (slopes * diagonal(m)).sum())(matrix), atol=1e-4)


def test_samples_have_the_covariance_and_the_gradients_of_their_distribution():
    """The gradient of E[(cᵀx)²] = cᵀ matrix⁻¹ c."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(3, 3)).astype(np.float32)
    matrix = jnp.asarray(root @ root.T + 2 * np.eye(3, dtype=np.float32))
    noise, c = jnp.asarray(rng.normal(size=(200_000, 3)), jnp.float32), jnp.array([1.0, -2.0, 0.5])

    def second_moment(m):
        x = centred_sample(m, inverse_factor(jnp.linalg.cholesky(matrix), jnp.zeros(3)), noise)
        return jnp.square(x @ c).mean()

    exact = jax.value_and_grad(lambda m: c @ jnp.linalg.solve(m, c))
    for ours, expected in zip(jax.value_and_grad(second_moment)(matrix), exact(matrix), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0.02, atol=2e-3)
