"""The last layers of reward models: heads on an encoded response and a latent, and the population reward."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fssa_jax.models.layers import MLP, BatchNorm

Norm = Literal["none", "batch"]


class ConcatHead(nn.Module):
    """r = MLP([enc(y), z]), one hidden layer without biases; without z, r = MLP(enc(y)).

    The first layer is applied to the response and to z separately, and the results are added. This equals a layer on
    the concatenation, but z is processed once per user, and enc(y) once for all latent samples.

    Attributes:
      width: of the hidden layer.
      outputs: outputs per response, 1 for a reward, 2 for a mean and a raw scale.
      norm: "batch" for batch normalisation before the ReLU, as published.
      axis_name: axis of the pmap whose devices share the batch statistics, if any.
    """

    width: int
    outputs: int = 1
    norm: Norm = "none"
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, encoded: Float[Array, "*batch h"], z: Float[Array, "*samples m"] | None, train: bool
    ) -> Float[Array, "*out"]:
        """Rewards ([samples,] *batch, t, outputs) of responses (*batch, t, h) for latents (samples, *batch, m)."""
        h = nn.Dense(self.width, use_bias=self.norm == "none", name="response")(encoded)
        if z is not None:
            shift = nn.Dense(self.width, use_bias=False, name="latent")(z)
            h = h[None] + shift[..., None, :]
        if self.norm == "batch":
            h = BatchNorm(self.axis_name, name="norm")(h, train)
        return nn.Dense(self.outputs, use_bias=False, name="out")(nn.relu(h))


class BilinearHead(nn.Module):
    """r = ⟨enc(y), W z + b⟩: linear in the latent, so that people can be blended and compared.

    W is initialised to the identity, so z starts in the space of the encoded responses.

    Attributes:
      outputs: outputs per response.
      bias: b is learnt; otherwise it is 0, and so is r at z = 0.
    """

    outputs: int = 1
    bias: bool = True

    @nn.compact
    def __call__(
        self, encoded: Float[Array, "*batch h"], z: Float[Array, "*samples m"], train: bool
    ) -> Float[Array, "*out"]:
        """Rewards (samples, *batch, t, outputs) of responses (*batch, t, h) for latents (samples, *batch, m)."""
        del train  # both heads have the same signature
        h = encoded.shape[-1]

        def identity(key: Array, shape: tuple[int, int], dtype: DTypeLike) -> Array:
            return jnp.tile(jnp.eye(shape[0], h, dtype=dtype), (1, self.outputs))

        dense = nn.Dense(h * self.outputs, use_bias=self.bias, kernel_init=identity, name="latent")
        weights = dense(z).reshape(*z.shape[:-1], self.outputs, h)
        return jnp.einsum("...th,s...oh->s...to", encoded, weights)


class PopulationReward(nn.Module):
    """s(y), the reward shared by everybody: linear in the features, or an MLP."""

    kind: Literal["linear", "mlp"]
    width: int
    outputs: int = 1
    norm: Norm = "none"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Float[Array, "*batch d"], train: bool) -> Float[Array, "*batch o"]:
        """Rewards of features."""
        if self.kind == "linear":
            return nn.Dense(self.outputs, use_bias=False, name="out")(features)
        encoded = MLP((self.width, self.width), name="encoder")(features)
        return ConcatHead(self.width, self.outputs, self.norm, self.axis_name, name="head")(encoded, None, train)
