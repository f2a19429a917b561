"""Solves with symmetric positive definite matrices, given their Cholesky factors, with cheap gradients.

XLA's CPU backend (JAX 0.10) can deadlock if one program runs two LAPACK calls on large batches at the same time.
Callers therefore run one factorisation at a time, and each LAPACK call depends on the result of the previous one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def cholesky_solve(
    matrix: Float[Array, "*batch m m"], factor: Float[Array, "*batch m m"], vector: Float[Array, "*batch m"]
) -> Float[Array, "*batch m"]:
    """matrix⁻¹ vector.

    The gradient is one more solve with the same factor. Differentiating the Cholesky factor itself costs several times
    the whole forward pass.

    Args:
      matrix: symmetric and positive definite.
      factor: its lower Cholesky factor, without a gradient.
      vector: the right-hand side.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops._cholesky import cholesky_solve
    >>> matrix = jnp.diag(jnp.array([1.0, 4.0]))
    >>> cholesky_solve(matrix, jnp.linalg.cholesky(matrix), jnp.array([1.0, 2.0])).tolist()
    [1.0, 0.5]
    """
    return jax.lax.custom_linear_solve(
        lambda x: jnp.einsum("...ij,...j->...i", matrix, x),
        vector,
        lambda _, b: jax.scipy.linalg.cho_solve((factor, True), b[..., None])[..., 0],
        symmetric=True,
    )


@jax.custom_vjp
def inverse_diagonal(
    matrix: Float[Array, "*batch m m"], factor: Float[Array, "*batch m m"], after: Float[Array, "*batch m"]
) -> Float[Array, "*batch m"]:
    """The diagonal of matrix⁻¹: the variances of N(·, matrix⁻¹).

    Its gradient with respect to the matrix is −matrix⁻¹ diag(g) matrix⁻¹, two matrix products.

    Args:
      matrix: symmetric and positive definite.
      factor: its lower Cholesky factor, without a gradient.
      after: the result of the previous solve, which must finish first; where it is not finite, the diagonal is NaN.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops._cholesky import inverse_diagonal
    >>> matrix = jnp.diag(jnp.array([1.0, 4.0]))
    >>> inverse_diagonal(matrix, jnp.linalg.cholesky(matrix), jnp.zeros(2)).tolist()
    [1.0, 0.25]
    """
    return _forward(matrix, factor, after)[0]


def _forward(matrix: Array, factor: Array, after: Array) -> tuple[Array, Array]:
    del matrix
    # The right-hand side depends on `after`, which fixes the order of the two LAPACK calls.
    one = jnp.where(jnp.isfinite(after).all(-1), 1.0, jnp.nan)[..., None, None]
    identity = one * jnp.broadcast_to(jnp.eye(factor.shape[-1]), factor.shape)
    inverse_factor = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
    return jnp.sum(jnp.square(inverse_factor), axis=-2), inverse_factor


def _backward(inverse_factor: Array, gradient: Array) -> tuple[Array, Array, Array]:
    inverse = jnp.einsum("...ji,...jk->...ik", inverse_factor, inverse_factor)
    of_matrix = -jnp.einsum("...ij,...j,...jk->...ik", inverse, gradient, inverse)
    return of_matrix, jnp.zeros_like(inverse_factor), jnp.zeros_like(gradient)


inverse_diagonal.defvjp(_forward, _backward)
