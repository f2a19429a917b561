"""Diagonal normal distributions: sample, log-density, Kullback-Leibler divergence."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from fssa_jax.ops._checks import check_shapes, floats_alike
from fssa_jax.types import DiagGaussian


def standard_normal_like(dist: DiagGaussian) -> DiagGaussian:
    """N(0, I) with the shape of `dist`: the prior of VPL (arXiv 2408.10075).

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import standard_normal_like
    >>> from fssa_jax.types import DiagGaussian
    >>> print(standard_normal_like(DiagGaussian(jnp.full(2, 5.0), jnp.full(2, 3.0))).scale)
    [1. 1.]
    """
    return DiagGaussian(jnp.zeros_like(dist.mean), jnp.ones_like(dist.scale))


def gaussian_sample(dist: DiagGaussian, noise: Float[ArrayLike, "*samples m"]) -> Float[Array, "*samples m"]:
    """A reparameterised sample z = μ + σ ε.

    Args:
      dist: mean and scale (*batch, m).
      noise: standard normal ε, (*samples, *batch, m). Passing the noise, not a key, keeps the function
        pure, and callers can share or replay the noise.

    Returns:
      z, in the shape of the noise.

    Raises:
      ValueError: the shape of the noise does not end in that of the distribution.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import DiagGaussian, gaussian_sample
    >>> print(gaussian_sample(DiagGaussian(jnp.ones(2), jnp.array([0.0, 2.0])), jnp.ones((1, 2))))
    [[1. 3.]]
    """
    mean, scale = _parameters(dist=dist)
    noise = jnp.asarray(noise)
    if noise.ndim < mean.ndim or noise.shape[noise.ndim - mean.ndim :] != mean.shape:
        raise ValueError(
            f"noise: wanted a shape that ends in that of the distribution, {mean.shape}, got {noise.shape}"
        )
    lead = (1,) * (noise.ndim - mean.ndim)
    return mean.reshape(lead + mean.shape) + scale.reshape(lead + scale.shape) * noise


def gaussian_log_prob(dist: DiagGaussian, value: ArrayLike) -> Float[Array, "*batch"]:
    """log N(z; μ, diag σ²), summed over the last axis, in nats.

    Args:
      dist: mean and scale (*batch, m), scale > 0.
      value: z, (*batch, m), or a number for all coordinates.

    Returns:
      One log-density per batch entry, (*batch).

    Raises:
      ValueError: two arrays of different shapes.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import DiagGaussian, gaussian_log_prob
    >>> print(f"{gaussian_log_prob(DiagGaussian(jnp.zeros(2), jnp.ones(2)), 0.0):.4f}")
    -1.8379
    """
    mean, scale, value = _parameters(dist=dist, value=value)
    t = (value - mean) / scale
    return jnp.sum(-0.5 * t**2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi), axis=-1)


def gaussian_kl(q: DiagGaussian, p: DiagGaussian) -> Float[Array, "*batch"]:
    """KL(q ‖ p) = Σ log(σp/σq) + (σq² + (μq − μp)²) / (2σp²) − ½, in nats.

    Args:
      q, p: means and scales (*batch, m), scales > 0. The sum is over the last axis.

    Returns:
      One divergence per batch entry, (*batch).

    Raises:
      ValueError: two arrays of different shapes.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import DiagGaussian, gaussian_kl
    >>> unit = DiagGaussian(jnp.zeros(3), jnp.ones(3))
    >>> print(gaussian_kl(DiagGaussian(jnp.ones(3), jnp.ones(3)), unit))
    1.5
    """
    q_mean, q_scale, p_mean, p_scale = _parameters(q=q, p=p)
    ratio = q_scale / p_scale
    shift = (q_mean - p_mean) / p_scale
    return jnp.sum(-jnp.log(ratio) + 0.5 * (ratio**2 + shift**2 - 1), axis=-1)


def antithetic_noise(key: Key[Array, ""], samples: int, width: int) -> Float[Array, "samples width"]:
    """Standard normal noise in pairs ε, −ε: averages over few samples vary less, and odd moments cancel.

    >>> import jax
    >>> from fssa_jax.ops import antithetic_noise
    >>> noise = antithetic_noise(jax.random.key(0), samples=4, width=3)
    >>> noise.shape, bool((noise[2:] == -noise[:2]).all())
    ((4, 3), True)
    """
    check_shapes(key=(key, ""))
    half = jax.random.normal(key, ((samples + 1) // 2, width))
    return jnp.concatenate([half, -half])[:samples]


def _parameters(**values: DiagGaussian | ArrayLike) -> tuple[Array, ...]:
    """Means, scales and values as arrays of one shape (*batch, m)."""
    named: dict[str, ArrayLike] = {}
    for name, value in values.items():
        named |= (
            {f"{name}.mean": value.mean, f"{name}.scale": value.scale}
            if isinstance(value, DiagGaussian)
            else {name: value}
        )
    arrays = floats_alike(**named)
    check_shapes(**{name: (array, "*batch m") for name, array in zip(named, arrays, strict=True)})
    return arrays
