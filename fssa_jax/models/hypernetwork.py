"""The hypernetwork maps a person's latent to adapters of a language model. At init the adapters are the identity."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from fssa_jax.models.layers import MLP
from fssa_jax.ops.adapters import AdapterTree, Film, LowRank

AdapterKind = Literal["film", "lora_core", "lora"]


class Hypernetwork(nn.Module):
    """z ↦ adapters of every layer, one row per latent (arXiv 2412.13998, section 3.2).

    | kind      | adapted                       | emitted from z                                                     |
    |-----------|-------------------------------|--------------------------------------------------------------------|
    | film      | γ ⊙ y + β                     | γ and β, each linear in z and in its own `hidden` units            |
    |           |                               | ⅕ gelu(4 U z); init γ = 1, β = 0                                   |
    | lora_core | y + B M A x, A and B shared   | M, diagonal or r × r, linear in z; init M = 0                      |
    | lora      | y + B A x                     | A and B, linear in (U z) ⊙ (1 + g(e)) + b(e), where e is an        |
    |           |                               | embedding of layer and place; init B = 0                           |

    Attributes:
      kind: of the adapters.
      places: (place, inputs, outputs) of each, from `place_sizes`.
      layers: of the decoder.
      rank: r of the low-rank kinds.
      core: shape of M, for "lora_core".
      hidden: hidden units, for "film"; 0 for γ and β linear in z, as published.
      width: of the embeddings and of the hidden layer, for "lora".
      shared_places, shared_rank, shared_scale: an additional ordinary LoRA, the same for everybody (arXiv 2106.09685):
        y + scale · B A x, init B = 0; rank 0 for none.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax import DecoderConfig
    >>> from fssa_jax.models.decoder import place_sizes
    >>> from fssa_jax.models.hypernetwork import Hypernetwork
    >>> decoder = DecoderConfig(vocabulary=50, width=16, layers=2, heads=4, groups=2, head_dim=4, mlp_width=32)
    >>> hyper = Hypernetwork("film", place_sizes(decoder, ("residual",)), decoder.layers)
    >>> variables = hyper.init(jax.random.key(0), jnp.zeros((1, 8)))
    >>> hyper.apply(variables, jnp.ones((3, 8)))["residual"].scale.shape  # layers, people, width
    (2, 3, 16)
    """

    kind: AdapterKind
    places: tuple[tuple[str, int, int], ...]
    layers: int
    rank: int = 8
    core: Literal["diagonal", "full"] = "diagonal"
    hidden: int = 0
    width: int = 64
    shared_places: tuple[tuple[str, int, int], ...] = ()
    shared_rank: int = 0
    shared_scale: float = 2.0

    @nn.compact
    def __call__(self, z: Float[Array, "rows m"]) -> AdapterTree:
        """Adapters with one row per latent."""
        if self.kind == "lora":
            tree = self._factors(z)
        else:
            emit: Any = self._film if self.kind == "film" else self._core
            tree: AdapterTree = {place: emit(z, place, inputs, outputs) for place, inputs, outputs in self.places}
        if self.shared_rank:
            for place, inputs, outputs in self.shared_places:
                down = self.param(f"shared_{place}_down", _fan_in, (self.layers, inputs, self.shared_rank))
                up = self.param(f"shared_{place}_up", nn.initializers.zeros, (self.layers, self.shared_rank, outputs))
                lora = LowRank(down, self.shared_scale * up)
                tree[place] = (lora, tree[place]) if place in tree else lora
        return tree

    def _linear(self, z: Array, name: str, shape: tuple[int, ...], start: float = 0.0) -> Array:
        """start + W z + b, init W = 0 and b = 0, as (layers, rows, *shape)."""
        size = 1
        for n in shape:
            size *= n
        out = nn.Dense(self.layers * size, kernel_init=nn.initializers.zeros, name=name)(z)
        return start + jnp.moveaxis(out.reshape(z.shape[0], self.layers, *shape), 0, 1)

    def _film(self, z: Array, place: str, inputs: int, outputs: int) -> Film:
        del inputs
        scale, shift = (self._with_hidden_units(z, f"{place}_{name}") for name in ("scale", "shift"))
        return Film(
            self._linear(scale, f"{place}_scale", (outputs,), 1.0), self._linear(shift, f"{place}_shift", (outputs,))
        )

    def _with_hidden_units(self, z: Array, name: str) -> Array:
        """z concatenated with hidden units. Their input is scaled up into the nonlinear range of gelu."""
        if not self.hidden:
            return z
        return jnp.concatenate([z, 0.2 * nn.gelu(nn.Dense(self.hidden, name=f"{name}_h")(4.0 * z))], axis=-1)

    def _core(self, z: Array, place: str, inputs: int, outputs: int) -> LowRank:
        down = self.param(f"{place}_down", _fan_in, (self.layers, inputs, self.rank))
        up = self.param(f"{place}_up", _fan_in, (self.layers, self.rank, outputs))
        shape = (self.rank,) if self.core == "diagonal" else (self.rank, self.rank)
        return LowRank(down, up, self._linear(z, f"{place}_core", shape))

    def _factors(self, z: Array) -> AdapterTree:
        rows, layers, r = z.shape[0], self.layers, self.rank
        normal, zeros = nn.initializers.normal(1.0), nn.initializers.zeros
        of_layer = self.param("layer_embedding", normal, (layers, self.width))
        of_place = self.param("place_embedding", normal, (len(self.places), self.width))
        emitted, gain = nn.Dense(self.width, name="latent"), nn.Dense(self.width, kernel_init=zeros, name="latent_gain")
        bias = MLP((self.width, self.width), name="trunk")
        tree: AdapterTree = {}
        for i, (place, inputs, outputs) in enumerate(self.places):
            where = (of_layer + of_place[i][None])[:, None]
            # Linear in z, like the other kinds; an MLP of z and the embedding learns several times more slowly.
            hidden = emitted(z)[None] * (1 + gain(where)) + bias(where)
            down = nn.Dense(inputs * r, name=f"{place}_down")(hidden).reshape(layers, rows, inputs, r)
            up = nn.Dense(r * outputs, kernel_init=nn.initializers.zeros, name=f"{place}_up")(hidden)
            tree[place] = LowRank(down / inputs**0.5, up.reshape(layers, rows, r, outputs))
        return tree


def _fan_in(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Normal with variance 1 / inputs, for factors (layers, inputs, outputs)."""
    return nn.initializers.normal(shape[1] ** -0.5)(key, shape, dtype)
