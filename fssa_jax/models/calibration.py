"""Calibration of a latent after training: how far it moves from the population, and how sure predictions are, by k."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fssa_jax.types import DiagGaussian, Posterior


class Calibration(NamedTuple):
    """Shrinkage g and temperature τ as functions of the number of choices.

    With x = log(1 + k) / log(1 + K), K the largest context that was validated, and x ≤ 1:

        z ← g(k) z,   g(k) = (1 − x) g₀ + x g₁,   p = softmax(τ(k) r),   log τ(k) = (1 − x) t₀ + x t₁

    for k ≥ 1. g = 0 is the population model: the guard. g(0) and τ(0), for a person without choices, are of their own:
    z is then from the prior, whose mean is what the people in training share beyond the population model. All are
    fitted to validation people; see evaluate/calibrate.py.

    Attributes:
      shrinkage: (g₀, g₁), each in [0, 1].
      log_temperature: (t₀, t₁).
      log_temperature_without: log τ(0).
      shrinkage_without: g(0), in [0, 1].
      most: K, ≥ 1.
    """

    shrinkage: Float[Array, "2"]
    log_temperature: Float[Array, "2"]
    log_temperature_without: Float[Array, ""]
    shrinkage_without: Float[Array, ""]
    most: Float[Array, ""]


def factors(
    calibration: Calibration, k: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """g(k) and τ(k).

    >>> import jax.numpy as jnp
    >>> from fssa_jax.models.calibration import Calibration, factors
    >>> half = Calibration(jnp.array([1.0, 0.5]), jnp.zeros(2), jnp.zeros(()), jnp.zeros(()), jnp.array(10.0))
    >>> g, _ = factors(half, jnp.array([0.0, 10.0, 99.0]))
    >>> g.tolist()
    [0.0, 0.5, 0.5]
    """
    x = jnp.minimum(jnp.log1p(k) / jnp.log1p(jnp.maximum(calibration.most, 1.0)), 1.0)
    g, t = (values[0] + (values[1] - values[0]) * x for values in (calibration.shrinkage, calibration.log_temperature))
    return jnp.where(k > 0, g, calibration.shrinkage_without), jnp.exp(
        jnp.where(k > 0, t, calibration.log_temperature_without)
    )


def calibrated(q: DiagGaussian, calibration: Calibration | None, mask: Bool[Array, "*batch n"]) -> DiagGaussian:
    """q with its latent shrunk and, if it is a `Posterior`, its temperature set; unchanged without a calibration.

    The population model knows no lapses, so where g = 0 there are none.
    """
    if calibration is None:
        return q
    g, temperature = factors(calibration, mask.sum(-1).astype(q.mean.dtype))
    mean, scale = g[..., None] * q.mean, g[..., None] * q.scale
    if not isinstance(q, Posterior):
        return DiagGaussian(mean, scale)
    return dataclasses.replace(
        q,
        mean=mean,
        scale=scale,
        points=g[..., None, None] * q.points,
        temperature=temperature * q.temperature,
        lapse=None if q.lapse is None else jnp.where(g > 0, q.lapse, 0.0),
    )
