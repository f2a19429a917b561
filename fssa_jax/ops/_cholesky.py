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


def inverse_factor(factor: Float[Array, "*batch m m"], after: Float[Array, "*batch m"]) -> Float[Array, "*batch m m"]:
    """The inverse of a lower Cholesky factor, without a gradient.

    Args:
      factor: lower triangular.
      after: the result of the previous solve, which must finish first; where it is not finite, the inverse is NaN.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops._cholesky import inverse_factor
    >>> inverse_factor(jnp.diag(jnp.array([1.0, 2.0])), jnp.zeros(2)).tolist()
    [[1.0, 0.0], [0.0, 0.5]]
    """
    # The right-hand side depends on `after`, which fixes the order of the two LAPACK calls.
    factor, after = jax.lax.stop_gradient((factor, after))
    one = jnp.where(jnp.isfinite(after).all(-1), 1.0, jnp.nan)[..., None, None]
    identity = one * jnp.broadcast_to(jnp.eye(factor.shape[-1]), factor.shape)
    return jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)


@jax.custom_vjp
def inverse_diagonal(
    matrix: Float[Array, "*batch m m"], inverse: Float[Array, "*batch m m"]
) -> Float[Array, "*batch m"]:
    """The diagonal of matrix⁻¹: the variances of N(·, matrix⁻¹).

    Its gradient with respect to the matrix is −matrix⁻¹ diag(g) matrix⁻¹, two matrix products.

    Args:
      matrix: symmetric and positive definite.
      inverse: the `inverse_factor` of its Cholesky factor.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops._cholesky import inverse_diagonal
    >>> inverse_diagonal(jnp.diag(jnp.array([1.0, 4.0])), jnp.diag(jnp.array([1.0, 0.5]))).tolist()
    [1.0, 0.25]
    """
    del matrix
    return jnp.sum(jnp.square(inverse), axis=-2)


def _diagonal_forward(matrix: Array, inverse: Array) -> tuple[Array, Array]:
    return inverse_diagonal(matrix, inverse), inverse


def _diagonal_backward(inverse: Array, gradient: Array) -> tuple[Array, Array]:
    whole = jnp.einsum("...ji,...jk->...ik", inverse, inverse)
    return -jnp.einsum("...ij,...j,...jk->...ik", whole, gradient, whole), jnp.zeros_like(inverse)


inverse_diagonal.defvjp(_diagonal_forward, _diagonal_backward)


@jax.custom_vjp
def centred_sample(
    matrix: Float[Array, "*batch m m"], inverse: Float[Array, "*batch m m"], noise: Float[Array, "*batch s m"]
) -> Float[Array, "*batch s m"]:
    """Samples x of N(0, matrix⁻¹), one for each row of standard normal noise.

    As the matrix changes, a sample moves by dx = −½ matrix⁻¹ d(matrix) x. This carries N(0, matrix⁻¹) along, so it
    gives the gradients of expectations, with two matrix products. The derivative of a Cholesky factor costs more.

    Args:
      matrix: symmetric and positive definite.
      inverse: the `inverse_factor` of its Cholesky factor.
      noise: standard normal.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops._cholesky import centred_sample
    >>> centred_sample(jnp.diag(jnp.array([1.0, 4.0])), jnp.diag(jnp.array([1.0, 0.5])), jnp.ones((1, 2))).tolist()
    [[1.0, 0.5]]
    """
    del matrix
    return jnp.einsum("...sj,...ji->...si", noise, inverse)


def _sample_forward(matrix: Array, inverse: Array, noise: Array) -> tuple[Array, tuple[Array, Array]]:
    x = centred_sample(matrix, inverse, noise)
    return x, (inverse, x)


def _sample_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    inverse, x = kept
    moved = jnp.einsum("...ji,...jk,...sk->...si", inverse, inverse, gradient)
    of_matrix = -0.5 * jnp.einsum("...si,...sj->...ij", moved, x)
    of_matrix = 0.5 * (of_matrix + jnp.swapaxes(of_matrix, -1, -2))
    return of_matrix, jnp.zeros_like(inverse), jnp.zeros_like(x)


centred_sample.defvjp(_sample_forward, _sample_backward)
