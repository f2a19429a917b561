"""The neural-process encoder: a set of choices in, a distribution over the person's latent out."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fssa_jax.models.layers import MLP, MaskedSelfAttention
from fssa_jax.types import Comparisons, DiagGaussian

PairInput = Literal["chosen", "rejected", "difference", "margin"]
Aggregation = Literal["mean", "sum", "attention"]

# A posterior narrower than this is a point for every purpose, and its KL divergence stays finite.
_MIN_SCALE = 1e-4


class NPEncoder(nn.Module):
    """q(z | C): encode every choice, aggregate over the set, then an MLP (arXiv 2412.13998, section 3.1).

    The result does not depend on the order of the choices or on padding, and is finite for an empty
    context.

    Attributes:
      width: of the pair encodings.
      latent_dim: m, the size of z.
      pair: encoder of one choice, "linear" or "mlp" (one hidden layer).
      inputs: what the pair encoder reads of a choice. "margin" is the choice's reward difference under
        the population model: a choice against the crowd tells more.
      aggregation: "mean", "sum", or "attention" (masked self-attention, then `pool`).
      pool: how attention's outputs are brought together, "mean" or "sum".
      prior_choice: put one learnt pseudo-choice into every context. The mean over k + 1 then tells k
        apart and is defined for k = 0, and its norm does not grow with k.
      residual: attention with a residual connection and a norm before it.
      gaussian: emit N(μ, diag σ²); otherwise z is deterministic and `scale` is 0.
      published: the published networks are pair="mlp" or "linear", inputs ("chosen", "rejected"),
        pool="sum", prior_choice=False and residual=False. There is no separate flag for them.
    """

    width: int = 128
    latent_dim: int = 128
    pair: Literal["linear", "mlp"] = "mlp"
    inputs: tuple[PairInput, ...] = ("chosen", "rejected")
    aggregation: Aggregation = "attention"
    pool: Literal["mean", "sum"] = "mean"
    prior_choice: bool = True
    residual: bool = True
    heads: int = 8
    dropout: float = 0.0
    gaussian: bool = False

    @nn.compact
    def __call__(
        self,
        context: Comparisons,
        margin: Float[Array, "*batch n"] | None = None,
        train: bool = False,
    ) -> DiagGaussian:
        """Args: context with features (*batch, n, d); margin, needed if `inputs` names it; train turns
        dropout on. Returns: DiagGaussian (*batch, m)."""
        mask = context.mask
        x = self._pair_inputs(context, margin)
        widths = (self.width,) if self.pair == "linear" else (self.width, self.width)
        h = MLP(widths, name="pair")(x)
        if self.prior_choice:
            prior = self.param("prior_choice", nn.initializers.normal(1.0), (self.width,))
            h = jnp.concatenate([jnp.broadcast_to(prior, (*h.shape[:-2], 1, self.width)), h], axis=-2)
            mask = jnp.concatenate([jnp.ones((*mask.shape[:-1], 1), bool), mask], axis=-1)
        pool = self.aggregation
        if self.aggregation == "attention":
            attend = MaskedSelfAttention(self.heads, self.residual, self.dropout, name="attention")
            h = attend(h, mask, deterministic=not train)
            pool = self.pool
        total = jnp.sum(jnp.where(mask[..., None], h, 0), axis=-2)
        if pool == "mean":
            total = total / jnp.maximum(mask.sum(-1), 1).astype(total.dtype)[..., None]
        out = MLP((self.width, self.latent_dim * (2 if self.gaussian else 1)), name="outer")(total)
        if not self.gaussian:
            return DiagGaussian(out, jnp.zeros_like(out))
        mean, raw = jnp.split(out, 2, axis=-1)
        return DiagGaussian(mean, jnp.maximum(jax.nn.softplus(raw), _MIN_SCALE))

    def _pair_inputs(self, context: Comparisons, margin: Array | None) -> Float[Array, "*batch n p"]:
        parts = {
            "chosen": context.chosen,
            "rejected": context.rejected,
            "difference": context.chosen - context.rejected,
        }
        if "margin" in self.inputs:
            if margin is None:
                raise ValueError("inputs name 'margin': pass the population margin of the choices")
            parts["margin"] = margin[..., None]
        return jnp.concatenate([parts[name] for name in self.inputs], axis=-1)
