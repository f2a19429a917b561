"""Diagonal normal distributions: sample, log-density, Kullback-Leibler divergence."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fssa_jax.types import DiagGaussian


def standard_normal_like(dist: DiagGaussian) -> DiagGaussian:
    """N(0, I) with the shape of `dist`: the prior of VPL."""
    return DiagGaussian(jnp.zeros_like(dist.mean), jnp.ones_like(dist.scale))


def gaussian_sample(dist: DiagGaussian, noise: Float[Array, "*samples m"]) -> Float[Array, "*samples m"]:
    """A reparameterised sample z = μ + σ ε.

    Args:
      dist: mean and scale (*batch, m).
      noise: standard normal ε, (*samples, *batch, m). Passing the noise, not a key, keeps the function
        pure on arrays and lets callers share or replay it.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import DiagGaussian, gaussian_sample
    >>> print(gaussian_sample(DiagGaussian(jnp.ones(2), jnp.array([0.0, 2.0])), jnp.ones((1, 2))))
    [[1. 3.]]
    """
    if noise.shape[noise.ndim - dist.mean.ndim :] != dist.mean.shape:
        raise ValueError(f"noise {noise.shape} must end in the shape of the distribution, {dist.mean.shape}")
    lead = (1,) * (noise.ndim - dist.mean.ndim)
    return dist.mean.reshape(lead + dist.mean.shape) + dist.scale.reshape(lead + dist.scale.shape) * noise


def gaussian_log_prob(dist: DiagGaussian, value: Float[Array, "*batch m"]) -> Float[Array, "*batch"]:
    """log N(z; μ, diag σ²), summed over the last axis, in nats.

    Args:
      dist: mean and scale (*batch, m), scale > 0.
      value: z, the same shape.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import DiagGaussian, gaussian_log_prob
    >>> print(f"{gaussian_log_prob(DiagGaussian(jnp.zeros(2), jnp.ones(2)), jnp.zeros(2)):.4f}")
    -1.8379
    """
    t = (value - dist.mean) / dist.scale
    return jnp.sum(-0.5 * t**2 - jnp.log(dist.scale) - 0.5 * jnp.log(2 * jnp.pi), axis=-1)


def gaussian_kl(q: DiagGaussian, p: DiagGaussian) -> Float[Array, "*batch"]:
    """KL(q ‖ p) = Σ log(σp/σq) + (σq² + (μq − μp)²) / (2σp²) − ½, in nats.

    Args:
      q, p: means and scales (*batch, m), scales > 0. The sum is over the last axis.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import DiagGaussian, gaussian_kl
    >>> unit = DiagGaussian(jnp.zeros(3), jnp.ones(3))
    >>> print(gaussian_kl(DiagGaussian(jnp.ones(3), jnp.ones(3)), unit))
    1.5
    """
    ratio = q.scale / p.scale
    shift = (q.mean - p.mean) / p.scale
    return jnp.sum(-jnp.log(ratio) + 0.5 * (ratio**2 + shift**2 - 1), axis=-1)


def antithetic_noise(key: Key[Array, ""], samples: int, width: int) -> Float[Array, "samples width"]:
    """Standard normal noise in pairs ε, −ε: averages over few samples vary less, and odd ones cancel."""
    half = jax.random.normal(key, ((samples + 1) // 2, width))
    return jnp.concatenate([half, -half])[:samples]
