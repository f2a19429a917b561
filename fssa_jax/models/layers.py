"""Layers that Linen lacks, or that must match the published networks exactly."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fssa_jax.types import PyTree


class MLP(nn.Module):
    """Dense layers of the given widths with ReLU between them; none after the last."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch h"]:
        # Flattened to one matrix: the weight gradient over several batch axes is a slower contraction.
        y = x.reshape(-1, x.shape[-1])
        for i, width in enumerate(self.widths):
            y = nn.Dense(width, name=f"dense_{i}")(y if i == 0 else nn.relu(y))
        return y.reshape(*x.shape[:-1], y.shape[-1])


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis, as in the published reward decoder.

    Linen's running average uses the biased batch variance; torch's uses the unbiased one, as this layer does.
    Under pmap the statistics are those of the whole batch (`axis_name`).
    """

    axis_name: str | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*batch h"], train: bool) -> Float[Array, "*batch h"]:
        h = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (h,))
        bias = self.param("bias", nn.initializers.zeros, (h,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (h,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (h,))
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            n = x.size // h
            mean, square = x.mean(axes), (x**2).mean(axes)
            if self.axis_name is not None and not self.is_initializing():
                mean, square = jax.lax.pmean((mean, square), self.axis_name)
                n *= jax.lax.axis_size(self.axis_name)
            var = square - mean**2
            if not self.is_initializing():
                keep = 1 - self.momentum
                running_mean.value = keep * running_mean.value + self.momentum * mean
                running_var.value = keep * running_var.value + self.momentum * var * (n / max(n - 1, 1))
        flat = (x.reshape(-1, h) - mean[None]) * (jax.lax.rsqrt(var + self.epsilon) * scale)[None] + bias[None]
        return flat.reshape(x.shape)


class MaskedSelfAttention(nn.Module):
    """Multi-head self-attention over the choices of one context; padding is masked.

    With `residual` the layer is x + attention(norm(x)): the scale of the output then depends on the choices, not on
    their number. Without it the layer is the published one, which has no norm.

    Attributes:
      heads: number of heads, a divisor of the width of x.
      residual: use a pre-norm and a residual connection.
      dropout: of the attention weights.
    """

    heads: int
    residual: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch n h"],
        mask: Bool[Array, "*batch n"],
        deterministic: bool,
        weight: Float[Array, "*batch n"] | None = None,
    ) -> Float[Array, "*batch n h"]:
        width = x.shape[-1]
        if mask.shape != x.shape[:-1]:
            raise ValueError(f"mask must be {x.shape[:-1]} for choices {x.shape}, got {mask.shape}")
        if width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {width}")
        y = nn.LayerNorm(name="norm")(x) if self.residual else x
        split = (*x.shape[:-1], self.heads, width // self.heads)
        query, key, value = (nn.Dense(width, name=name)(y).reshape(split) for name in ("query", "key", "value"))
        scores = jnp.einsum("...qhd,...khd->...hqk", query, key) * (width // self.heads) ** -0.5
        if weight is not None:  # two choices of weight ½ that are alike are attended to as one
            scores = scores + jnp.log(jnp.where(mask, weight, 1))[..., None, None, :]
        # A finite floor, not −inf: an empty context must give finite values and gradients.
        scores = jnp.where(mask[..., None, None, :], scores, -1e9)
        weights = nn.Dropout(self.dropout, deterministic=deterministic)(jax.nn.softmax(scores))
        mixed = jnp.einsum("...hqk,...khd->...qhd", weights, value).reshape(x.shape)
        out = nn.Dense(width, name="out")(mixed)
        return x + out if self.residual else out


def unstack_layers(tree: PyTree, layers: int) -> list[PyTree]:
    """Splits a tree whose leaves have a first axis over layers into a list with one tree per layer.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.models.layers import unstack_layers
    >>> [layer["bias"].tolist() for layer in unstack_layers({"bias": jnp.array([[1, 2], [3, 4]])}, 2)]
    [[1, 2], [3, 4]]
    """
    leaves, structure = jax.tree.flatten(tree)
    apart = [jnp.unstack(leaf) for leaf in leaves]
    return [structure.unflatten([leaf[i] for leaf in apart]) for i in range(layers)]
