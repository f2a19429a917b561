"""BERT-style sentence encoders, such as all-MiniLM-L6-v2."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fssa_jax.models.layers import unstack_layers
from fssa_jax.ops.attention import attention
from fssa_jax.types import PyTree

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len"]
POOLS: tuple[Pooling, ...] = typing.get_args(Pooling)
"""In the order in which sentence-transformers concatenates their results."""


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The shape of an encoder. `hf_config.read_config` reads it from a config.json."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_length: int = 512
    types: int = 2
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    norm_epsilon: float = 1e-12


_ACTIVATIONS = {
    # With erf, as in the reference; jax.nn.gelu uses erfc, which costs more.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5)),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def layer_norm(x: Float[Array, "*batch d"], parameters: PyTree, epsilon: float) -> Float[Array, "*batch d"]:
    """(x − mean) / √(variance + ε) · scale + bias, computed in float32, returned in the type of x."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    lead = (1,) * (x.ndim - 1)
    return (y * parameters["scale"].reshape(*lead, -1) + parameters["bias"].reshape(*lead, -1)).astype(x.dtype)


def mean_pool(
    hidden: Float[Array, "batch t d"],
    lengths: Int[Array, " batch"],
    normalise: bool = True,
    starts: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch d"]:
    """The mean over the tokens starts ≤ i < lengths of each row, in float32, scaled to unit length with `normalise`.

    `starts` is 0 by default.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.models.bert import mean_pool
    >>> mean_pool(jnp.array([[[3.0, 0.0], [9.0, 9.0]]]), jnp.array([1])).tolist()
    [[1.0, 0.0]]
    """
    place = jnp.arange(hidden.shape[1])[None]
    real = place < lengths[:, None]
    if starts is not None:
        real &= place >= starts[:, None]
    total = jnp.einsum("btd,bt->bd", hidden.astype(jnp.float32), real.astype(jnp.float32))
    mean = total / jnp.maximum(real.sum(1), 1).astype(jnp.float32)[:, None]
    return unit(mean) if normalise else mean


def pool_tokens(
    hidden: Float[Array, "batch t d"], lengths: Int[Array, " batch"], pools: Sequence[Pooling]
) -> Float[Array, "batch pools_d"]:
    """Vectors of texts from the states of their first `lengths` tokens: the results of all poolings, concatenated.

    `mean_sqrt_len` is the sum divided by the root of the length.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.models.bert import pool_tokens
    >>> pool_tokens(jnp.array([[[3.0, 0.0], [1.0, 4.0], [9.0, 9.0]]]), jnp.array([2]), ["cls", "max"]).tolist()
    [[3.0, 0.0, 3.0, 4.0]]
    """
    hidden = hidden.astype(jnp.float32)
    real = (jnp.arange(hidden.shape[1])[None] < lengths[:, None])[..., None]
    mean = mean_pool(hidden, lengths, normalise=False)
    made = {
        "cls": hidden[:, 0],
        "max": jnp.where(real, hidden, -jnp.inf).max(1),
        "mean": mean,
        "mean_sqrt_len": mean * jnp.sqrt(lengths.astype(jnp.float32))[:, None],
    }
    return jnp.concatenate([made[pool] for pool in pools], axis=-1)


def unit(vectors: Float[Array, "batch d"]) -> Float[Array, "batch d"]:
    """Vectors scaled to unit length."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


class BertEncoder(nn.Module):
    """Hidden states of tokens under bidirectional attention; padding on the right is masked.

    Attributes:
      config: the shape.
      dtype: of the computation; norms and softmax are always float32.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax import BertEncoder
    >>> from fssa_jax.models.bert import BertConfig
    >>> model = BertEncoder(BertConfig(vocabulary=50, width=16, layers=2, heads=4, mlp_width=32))
    >>> tokens, lengths = jnp.ones((2, 5), int), jnp.array([5, 3])
    >>> variables = model.init(jax.random.key(0), tokens, lengths)
    >>> model.apply(variables, tokens, lengths).shape
    (2, 5, 16)
    """

    config: BertConfig
    dtype: Any = jnp.float32

    def setup(self):
        c = self.config
        init = nn.initializers.normal(0.02)
        self.embeddings = self.param(
            "embeddings",
            lambda key: {
                "words": init(key, (c.vocabulary, c.width)),
                "positions": init(key, (c.max_length, c.width)),
                "types": init(key, (c.types, c.width)),
                "norm": {"scale": jnp.ones(c.width), "bias": jnp.zeros(c.width)},
            },
        )
        self.layers = self.param("layers", _init_layers, c)

    def __call__(self, tokens: Int[Array, "batch t"], lengths: Int[Array, " batch"]) -> Float[Array, "batch t d"]:
        """The last layer's states, (batch, t, d); states of padding are meaningless."""
        c, e = self.config, self.embeddings
        batch, t = tokens.shape
        x = e["words"][tokens] + e["positions"][None, :t] + e["types"][0][None, None]
        x = layer_norm(x.astype(self.dtype), e["norm"], c.norm_epsilon)

        def linear(layer: PyTree, name: str, y: Array) -> Array:
            kernel, bias = (layer[name][part].astype(y.dtype) for part in ("kernel", "bias"))
            return jnp.einsum("btd,df->btf", y, kernel) + bias[None, None]

        for layer in self.layers:
            query, key, value = (
                linear(layer, name, x).reshape(batch, t, c.heads, c.width // c.heads)
                for name in ("query", "key", "value")
            )
            mixed = attention(query, key, value, lengths=lengths, causal=False).reshape(batch, t, c.width)
            x = layer_norm(x + linear(layer, "out", mixed), layer["attention_norm"], c.norm_epsilon)
            y = linear(layer, "down", _ACTIVATIONS[c.activation](linear(layer, "up", x)))
            x = layer_norm(x + y, layer["mlp_norm"], c.norm_epsilon)
        return x


def _init_layers(key: Array, c: BertConfig) -> list[PyTree]:
    sizes = {
        "query": (c.width, c.width),
        "key": (c.width, c.width),
        "value": (c.width, c.width),
        "out": (c.width, c.width),
        "up": (c.width, c.mlp_width),
        "down": (c.mlp_width, c.width),
    }
    layers = {
        name: {"kernel": 0.02 * jax.random.normal(k, (c.layers, *size)), "bias": jnp.zeros((c.layers, size[1]))}
        for (name, size), k in zip(sizes.items(), jax.random.split(key, len(sizes)), strict=True)
    }
    norm = {"scale": jnp.ones((c.layers, c.width)), "bias": jnp.zeros((c.layers, c.width))}
    return unstack_layers(layers | {"attention_norm": norm, "mlp_norm": norm}, c.layers)
