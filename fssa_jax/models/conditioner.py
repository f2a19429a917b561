"""Turns what a language model is conditioned on (a person's choices, their group, or nothing) into adapters."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fssa_jax.models.bayes_encoder import BayesEncoder
from fssa_jax.models.hypernetwork import Hypernetwork
from fssa_jax.models.rewards import RewardModel
from fssa_jax.ops.adapters import AdapterTree
from fssa_jax.types import Comparisons, DiagGaussian, Episode


class Conditioner(nn.Module):
    """Choices ↦ q(z | C) ↦ adapters: the trained part of a policy; the language model is frozen.

    * latent "context" is NP-DPO: the encoder is that of an NP-BTL reward model.
    * latent "none" is DPO: one adapter for everybody.
    * latent "group" is a specialist per group: the group is given, and each has one learnt latent.

    Attributes:
      hyper: the hypernetwork that emits the adapters.
      reward: the reward model whose encoder reads the choices; for "context" only.
      groups, latent_dim: number of groups and size of z, for "group" only.
      frozen: no gradient reaches the encoder.
    """

    hyper: Hypernetwork
    latent: Literal["none", "context", "group"] = "context"
    reward: RewardModel | None = None
    groups: int = 0
    latent_dim: int = 32
    frozen: bool = False

    def setup(self):
        self.hypernetwork = self.hyper
        if self.latent == "context":
            if self.reward is None:
                raise ValueError("latent 'context' needs a reward model with an encoder")
            self.reward_model = self.reward
        elif self.latent == "group":
            self.group_latent = nn.Embed(self.groups, self.latent_dim)

    @property
    def sampled(self) -> bool:
        """Whether z is random; that of a frozen `BayesEncoder` is its mean."""
        if self.latent != "context" or self.reward is None:
            return False
        return self.reward.sampled and not (self.frozen and isinstance(self.reward.encoder, BayesEncoder))

    def infer(self, context: Comparisons, table: Float[Array, "texts d"] | None = None) -> DiagGaussian:
        """q(z | C) of contexts, without dropout; see `RewardModel.infer`."""
        q = self.reward_model.infer(context, table)
        return jax.lax.stop_gradient(q) if self.frozen else q

    def of_group(self, group: Array) -> DiagGaussian:
        """The learnt latents of groups, as point distributions."""
        z = self.group_latent(group)
        return DiagGaussian(z, jnp.zeros_like(z))

    def latent_of(self, episode: Episode, table: Array | None = None) -> DiagGaussian:
        """The latents of the people of a batch of episodes; for "none" a single row with a zero."""
        if self.latent == "none":
            return DiagGaussian(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
        return self.of_group(episode.group) if self.latent == "group" else self.infer(episode.context, table)

    def adapt(self, z: Float[Array, "rows m"]) -> AdapterTree:
        """Adapters for latents, one row per latent."""
        return self.hypernetwork(z)

    def target_rewards(
        self, targets: Comparisons, z: Float[Array, "*batch m"], table: Array | None = None
    ) -> Float[Array, "*batch t responses"]:
        """Rewards of the responses of every target under the reward model, in nats; the chosen one first."""
        return self.reward_model.target_rewards(targets, z[None], table)[0]

    def lapse(self) -> Float[Array, ""] | None:
        """The share of choices at random under the reward model; None where its encoder has no lapses."""
        return self.reward_model.lapse()

    def __call__(self, episode: Episode, table: Array | None = None) -> AdapterTree:
        """Adapters at the mean latent. Touches every parameter."""
        q = self.latent_of(episode, table)
        if self.latent == "context":
            self.target_rewards(episode.targets, q.mean, table)
        return self.adapt(q.mean)
