"""The set encoder of the neural process: maps a set of choices to a distribution over the person's latent."""

from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fssa_jax.models.context import MIN_SCALE, check_context
from fssa_jax.models.layers import MLP, MaskedSelfAttention
from fssa_jax.ops.choices import offered
from fssa_jax.types import Comparisons, DiagGaussian

PairInput = Literal["chosen", "rejected", "difference", "margin"]
Aggregation = Literal["mean", "sum", "attention"]


class SetEncoder(nn.Module):
    """q(z | C): encode every choice, aggregate over the set, then an MLP (arXiv 2412.13998, section 3.1).

    The published networks are pair "mlp" or "linear", inputs ("chosen", "rejected"), pool "sum", and neither
    prior_choice nor residual.

    Attributes:
      width: of the encoded choices; a multiple of `heads` for "attention".
      latent_dim: m, the size of z.
      pair: encoder of one choice, "linear" or "mlp" (one hidden layer).
      inputs: inputs of the pair encoder. "margin" is the choice's reward difference under the population model: a
        choice against the majority is more informative.
      aggregation: "mean", "sum", or "attention" (masked self-attention, then `pool`).
      pool: how the outputs of attention are pooled, "mean" or "sum".
      prior_choice: add one learnt pseudo-choice to every context. The mean over k + 1 choices then depends on k, is
        defined for k = 0, and its norm does not grow with k.
      residual: attention with a pre-norm and a residual connection.
      heads, dropout: of the attention.
      gaussian: q is N(μ, diag σ²), and models sample z from it; otherwise z is the mean, and `scale` is 0.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax import Comparisons, SetEncoder
    >>> context = Comparisons(jnp.ones((2, 3, 5)), jnp.zeros((2, 3, 5)), jnp.array([[True] * 3, [False] * 3]))
    >>> encoder = SetEncoder(width=16, latent_dim=4, heads=2, gaussian=True)
    >>> variables = encoder.init(jax.random.key(0), context)
    >>> encoder.apply(variables, context).mean.shape  # the second person has chosen nothing yet
    (2, 4)
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
        self, context: Comparisons, rewards: Float[Array, "*batch n r"] | None = None, train: bool = False
    ) -> DiagGaussian:
        """Reads a context.

        Args:
          context: choices with features (*batch, n, d). A choice of one among more than two is read as the mean of its
            pairs.
          rewards: population rewards of (chosen, rejected, others), in nats; needed if `inputs` names "margin".
          train: turns dropout on.

        Returns:
          q(z | C), (*batch, m).

        Raises:
          ValueError: shapes do not fit, the aggregation is unknown, or "margin" lacks the rewards.
        """
        check_context(context, rewards=rewards)
        if self.aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation must be one of {get_args(Aggregation)}, got {self.aggregation!r}")
        mask, weight = context.mask, context.weight
        x = self._read_pairs(context, rewards)
        widths = (self.width,) if self.pair == "linear" else (self.width, self.width)
        h = MLP(widths, name="pair")(x)
        if (listed := offered(context)) is not None:  # one observation: the mean over the pairs of a choice
            h = jnp.where(listed[..., None], h, 0).sum(-2) / listed.sum(-1).astype(h.dtype)[..., None]
        if self.prior_choice:
            prior = self.param("prior_choice", nn.initializers.normal(1.0), (self.width,))
            h = jnp.concatenate([jnp.broadcast_to(prior, (*h.shape[:-2], 1, self.width)), h], axis=-2)
            mask = jnp.concatenate([jnp.ones((*mask.shape[:-1], 1), bool), mask], axis=-1)
            if weight is not None:
                weight = jnp.concatenate([jnp.ones((*mask.shape[:-1], 1)), weight], axis=-1)
        pool = self.aggregation
        if self.aggregation == "attention":
            attend = MaskedSelfAttention(self.heads, self.residual, self.dropout, name="attention")
            h = attend(h, mask, deterministic=not train, weight=weight)
            pool = self.pool
        h = jnp.where(mask[..., None], h, 0)
        total = jnp.sum(h if weight is None else weight[..., None] * h, axis=-2)
        if pool == "mean" and weight is not None:
            total = total / jnp.maximum(jnp.where(mask, weight, 0).sum(-1), 1e-6)[..., None]
        elif pool == "mean":
            total = total / jnp.maximum(mask.sum(-1), 1).astype(total.dtype)[..., None]
        out = MLP((self.width, self.latent_dim * (2 if self.gaussian else 1)), name="outer")(total)
        if not self.gaussian:
            return DiagGaussian(out, jnp.zeros_like(out))
        mean, raw = jnp.split(out, 2, axis=-1)
        return DiagGaussian(mean, jnp.maximum(jax.nn.softplus(raw), MIN_SCALE))

    def _read_pairs(self, context: Comparisons, rewards: Array | None) -> Float[Array, "*pairs p"]:
        """The inputs of every pair: (*batch, n, p), or (*batch, n, 1 + a, p) of choices among more than two."""
        chosen, rejected = context.chosen, context.rejected
        if context.others is not None:
            rejected = jnp.concatenate([rejected[..., None, :], context.others], axis=-2)
            chosen = jnp.broadcast_to(chosen[..., None, :], rejected.shape)
        parts = {"chosen": chosen, "rejected": rejected, "difference": chosen - rejected}
        if "margin" in self.inputs:
            if rewards is None:
                raise ValueError("inputs name 'margin': wants the population's rewards, got None")
            margin = rewards[..., :1] - rewards[..., 1:]
            parts["margin"] = margin if context.others is None else margin[..., None]
        return jnp.concatenate([parts[name] for name in self.inputs], axis=-1)
