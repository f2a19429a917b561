"""Reward models: BTL, DPL and NP-BTL from one module (arXiv 2412.13998, section 3)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fssa_jax.likelihoods import Link, btl_log_likelihood, dpl_log_likelihood
from fssa_jax.models.encoder import NPEncoder
from fssa_jax.models.layers import MLP, BatchNorm
from fssa_jax.types import Comparisons, DiagGaussian

Norm = Literal["none", "batch"]
Latent = Literal["none", "context", "group"]


class ConcatHead(nn.Module):
    """r = MLP([enc(y), z]), one hidden layer without biases; without z, r = MLP(enc(y)).

    The first layer is applied to the response and to z apart and then added: the same function as a
    layer on the concatenation, but z is read once a user, and enc(y) once for all latent samples.
    """

    width: int
    outputs: int = 1
    norm: Norm = "none"
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, encoded: Float[Array, "*batch h"], z: Float[Array, "*samples m"] | None, train: bool
    ) -> Float[Array, "*out"]:
        """encoded: (*batch, t, h). z: (samples, *batch, m) or None. Returns ([samples,] *batch, t, outputs)."""
        h = nn.Dense(self.width, use_bias=self.norm == "none", name="response")(encoded)
        if z is not None:
            shift = nn.Dense(self.width, use_bias=False, name="latent")(z)
            h = h[None] + shift[..., None, :]
        if self.norm == "batch":
            h = BatchNorm(self.axis_name, name="norm")(h, train)
        return nn.Dense(self.outputs, use_bias=False, name="out")(nn.relu(h))


class BilinearHead(nn.Module):
    """r = ⟨enc(y), W z + b⟩: linear in the latent, so that people can be blended and compared."""

    outputs: int = 1

    @nn.compact
    def __call__(
        self, encoded: Float[Array, "*batch h"], z: Float[Array, "*samples m"], train: bool
    ) -> Float[Array, "*out"]:
        del train
        h = encoded.shape[-1]
        weights = nn.Dense(h * self.outputs, name="latent")(z).reshape(*z.shape[:-1], self.outputs, h)
        return jnp.einsum("...th,s...oh->s...to", encoded, weights)


class PopulationReward(nn.Module):
    """s(y), the reward of everybody together: linear in the features, or an MLP."""

    kind: Literal["linear", "mlp"]
    width: int
    outputs: int = 1
    norm: Norm = "none"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Float[Array, "*batch d"], train: bool) -> Float[Array, "*batch o"]:
        if self.kind == "linear":
            return nn.Dense(self.outputs, use_bias=False, name="out")(features)
        encoded = MLP((self.width, self.width), name="encoder")(features)
        return ConcatHead(self.width, self.outputs, self.norm, self.axis_name, name="head")(encoded, None, train)


class RewardModel(nn.Module):
    """Rewards of responses for a person, r(x, y, z), and the likelihood of choices under them.

    * latent "none" is BTL (or DPL with likelihood "dpl"): one reward s(y) for everybody.
    * latent "context" is NP-BTL: z comes from the `encoder` reading the person's choices.
    * latent "group" is an oracle: it is told the person's group and learns one latent for each.

    Attributes:
      population: in a model with a latent, "none", or a term s(y) added to the reward of the person.
      target: encoder of a response, "linear" or "mlp".
      learnt_texts: number of texts that have a learnt embedding of `text_width` beside their features
        (for new users on known texts); 0 for none. Responses are then given as ids of texts.
    """

    likelihood: Literal["btl", "dpl"] = "btl"
    link: Link = "probit"
    latent: Latent = "context"
    encoder: NPEncoder | None = None
    groups: int = 0
    target: Literal["linear", "mlp"] = "mlp"
    width: int = 128
    head: Literal["concat", "bilinear"] = "concat"
    norm: Norm = "none"
    population: Literal["none", "linear", "mlp"] = "none"
    learnt_texts: int = 0
    text_width: int = 0
    axis_name: str | None = None

    def setup(self):
        outputs = 2 if self.likelihood == "dpl" else 1
        if self.learnt_texts:
            init = nn.initializers.normal(0.01)
            self.text_embedding = nn.Embed(self.learnt_texts, self.text_width, embedding_init=init)
        if self.latent == "none":
            kind = "linear" if self.population == "linear" else "mlp"
            self.population_reward = PopulationReward(kind, self.width, outputs, self.norm, self.axis_name)
            return
        if self.population != "none":
            self.population_reward = PopulationReward(
                self.population, self.width, outputs, self.norm, self.axis_name
            )
        widths = (self.width,) if self.target == "linear" else (self.width, self.width)
        self.target_encoder = MLP(widths)
        if self.head == "bilinear":
            self.reward_head = BilinearHead(outputs)
        else:
            self.reward_head = ConcatHead(self.width, outputs, self.norm, self.axis_name)
        if self.latent == "context":
            if self.encoder is None:
                raise ValueError("latent 'context' needs an encoder")
            self.context_encoder = self.encoder
        else:
            latent_dim = self.encoder.latent_dim if self.encoder is not None else self.width
            self.group_latent = nn.Embed(self.groups, latent_dim)

    def features(
        self, responses: Array, table: Float[Array, "texts d"] | None
    ) -> Float[Array, "*batch d"]:
        """Features of responses: themselves, or, given as ids of texts, rows of the table with the
        learnt embedding appended."""
        if table is None:
            return responses
        rows = table[responses]
        if self.learnt_texts:
            rows = jnp.concatenate([rows, self.text_embedding(responses)], axis=-1)
        return rows

    def lookup(self, comparisons: Comparisons, table: Float[Array, "texts d"] | None) -> Comparisons:
        """The same choices with features in place of ids."""
        return Comparisons(
            self.features(comparisons.chosen, table),
            self.features(comparisons.rejected, table),
            comparisons.mask,
        )

    def encode(self, context: Comparisons, train: bool = False) -> DiagGaussian:
        """q(z | C) for contexts of features (*batch, n, d)."""
        assert self.encoder is not None
        margin = None
        if "margin" in self.encoder.inputs:
            chosen = self.population_reward(context.chosen, train)[..., 0]
            rejected = self.population_reward(context.rejected, train)[..., 0]
            margin = chosen - rejected
        return self.context_encoder(context, margin, train)

    def group_z(self, group: Array) -> Float[Array, "*batch m"]:
        """The learnt latent of a group (latent "group" only)."""
        return self.group_latent(group)

    def rewards(
        self,
        features: Float[Array, "*batch d"],
        z: Float[Array, "*samples m"] | None = None,
        train: bool = False,
    ) -> Float[Array, "*out"]:
        """Rewards of responses.

        Args:
          features: (*batch, t, d).
          z: latents (samples, *batch, m); None for latent "none".

        Returns:
          (samples, *batch, t, 1), samples 1 without z; with likelihood "dpl" the last axis holds the
          mean and the standard deviation.
        """
        if self.latent == "none":
            out = self.population_reward(features, train)[None]
        else:
            if z is None:
                raise ValueError("a model with a latent needs z")
            out = self.reward_head(self.target_encoder(features), z, train)
            if self.population != "none":
                out = out + self.population_reward(features, train)[None]
        if self.likelihood == "dpl":
            mean, raw = jnp.split(out, 2, axis=-1)
            return jnp.concatenate([mean, jax.nn.softplus(raw)], axis=-1)
        return out

    def log_likelihood(
        self,
        targets: Comparisons,
        z: Float[Array, "*samples m"] | None = None,
        train: bool = False,
    ) -> Float[Array, "*out"]:
        """log p(choice | z) of every target: (samples, *batch, t)."""
        n = targets.mask.shape[-1]
        # One pass over both responses: batch statistics (norm "batch") are those of all options.
        both = jnp.concatenate([targets.chosen, targets.rejected], axis=-2)
        rewards = self.rewards(both, z, train)
        chosen, rejected = rewards[..., :n, :], rewards[..., n:, :]
        if self.likelihood == "btl":
            return btl_log_likelihood(chosen[..., 0], rejected[..., 0])
        return dpl_log_likelihood(chosen[..., 0], chosen[..., 1], rejected[..., 0], rejected[..., 1], self.link)

    def __call__(self, context: Comparisons, targets: Comparisons, group: Array) -> Array:
        """Log-likelihood of the targets at the mean latent: touches every parameter (for `init`)."""
        if self.latent == "none":
            return self.log_likelihood(targets)
        z = self.group_z(group) if self.latent == "group" else self.encode(context).mean
        return self.log_likelihood(targets, z[None])
