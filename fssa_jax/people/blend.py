"""Mixtures of people's latents."""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from fssa_jax.errors import UserError
from fssa_jax.types import DiagGaussian


def blend(latents: Sequence[DiagGaussian], weights: Sequence[float]) -> DiagGaussian:
    """The mixture Σ w_i z_i of people's latents (from `PersonModel.infer`), as a point.

    Raises:
      UserError: no people, not one weight per person, or a weight that is not a number.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import DiagGaussian
    >>> from fssa_jax.people.blend import blend
    >>> one, two = (DiagGaussian(jnp.full((1, 2), m), jnp.ones((1, 2))) for m in (0.0, 4.0))
    >>> blend([one, two], [0.75, 0.25]).mean.tolist()
    [[1.0, 1.0]]
    """
    if len(latents) != len(weights):
        raise UserError(f"{len(weights)} weights for {len(latents)} people; give one for each")
    if not latents:
        raise UserError("no people to blend; give latents from infer")
    if not all(math.isfinite(w) for w in weights):
        raise UserError(f"weights {list(weights)}: each must be a number")
    mean = sum(w * q.mean for w, q in zip(weights, latents, strict=True))
    return DiagGaussian(mean, jnp.zeros_like(mean))
