"""Reward models: BTL, DPL and NP-BTL from one module (arXiv 2412.13998, section 3)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fssa_jax.likelihoods import Link, btl_log_likelihood, dpl_log_likelihood
from fssa_jax.models.encoder import NPEncoder
from fssa_jax.models.layers import MLP, BatchNorm
from fssa_jax.types import Comparisons, DiagGaussian, Episode

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
    """r = ⟨enc(y), W z + b⟩: linear in the latent, so that people can be blended and compared.

    W starts at the identity: at first z lives in the space of the encoded responses.
    """

    outputs: int = 1

    @nn.compact
    def __call__(
        self, encoded: Float[Array, "*batch h"], z: Float[Array, "*samples m"], train: bool
    ) -> Float[Array, "*out"]:
        del train
        h = encoded.shape[-1]

        def identity(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
            return jnp.tile(jnp.eye(shape[0], h, dtype=dtype), (1, self.outputs))

        dense = nn.Dense(h * self.outputs, kernel_init=identity, name="latent")
        weights = dense(z).reshape(*z.shape[:-1], self.outputs, h)
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
      target: encoder of a response's features, "linear" or "mlp"; "none" with learnt texts alone.
      head: how the encoded response and z make a reward.
      population: in a model with a latent, "none", or a term s(y) added to the reward of the person.
      learnt_texts: number of texts that have a learnt embedding, added to the encoded response, and a
        learnt population reward (for new users on known texts); 0 for none. Responses are then given as
        ids of texts.
      text_dropout: share of the texts whose learnt embedding is left out of a training step.
    """

    likelihood: Literal["btl", "dpl"] = "btl"
    link: Link = "probit"
    latent: Latent = "context"
    encoder: NPEncoder | None = None
    groups: int = 0
    target: Literal["none", "linear", "mlp"] = "mlp"
    width: int = 128
    head: Literal["concat", "bilinear"] = "concat"
    norm: Norm = "none"
    population: Literal["none", "linear", "mlp"] = "none"
    learnt_texts: int = 0
    text_dropout: float = 0.0
    axis_name: str | None = None

    def setup(self):
        outputs = 2 if self.likelihood == "dpl" else 1
        if self.latent == "none" or self.population != "none":
            kind = "linear" if self.population == "linear" else "mlp"
            self.population_reward = PopulationReward(kind, self.width, outputs, self.norm, self.axis_name)
            if self.learnt_texts:
                self.text_bias = nn.Embed(self.learnt_texts, 1, embedding_init=nn.initializers.zeros)
        if self.latent == "none":
            return
        if self.learnt_texts:
            init = nn.initializers.normal(0.1)
            self.text_embedding = nn.Embed(self.learnt_texts, self.width, embedding_init=init)
        if self.target != "none":
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

    @property
    def sampled(self) -> bool:
        """Whether z is a random variable, q(z | C) a distribution."""
        return self.latent == "context" and self.encoder is not None and self.encoder.gaussian

    def lookup(
        self, comparisons: Comparisons, table: Float[Array, "texts d"] | None, train: bool = False
    ) -> Comparisons:
        """The same choices with features in place of ids; unchanged where no table is given.

        With learnt texts the features are [learnt embedding, table row, learnt population reward].
        """
        if table is None:
            return comparisons
        keep = None
        if self.text_dropout and train and self.latent != "none":
            rate = 1 - self.text_dropout
            keep = jax.random.bernoulli(self.make_rng("dropout"), rate, (self.learnt_texts,)) / rate
        return Comparisons(
            self._features(comparisons.chosen, table, keep),
            self._features(comparisons.rejected, table, keep),
            comparisons.mask,
        )

    def _features(self, ids: Array, table: Array, keep: Array | None) -> Float[Array, "*batch d"]:
        parts = [table[ids]]
        if self.learnt_texts:
            # Texts that came after training have features only; their learnt part is 0.
            known = (ids < self.learnt_texts)[..., None]
            ids = jnp.minimum(ids, self.learnt_texts - 1)
            if self.latent != "none":
                learnt = self.text_embedding(ids) * (1 if keep is None else keep[ids][..., None])
                parts.insert(0, jnp.where(known, learnt, 0))
            if self._has_population:
                parts.append(jnp.where(known, self.text_bias(ids), 0))
        return jnp.concatenate(parts, axis=-1)

    @property
    def _has_population(self) -> bool:
        return self.latent == "none" or self.population != "none"

    def _encode_responses(self, features: Float[Array, "*batch d"]) -> Float[Array, "*batch h"]:
        """f(y): the target encoder of the features, plus the learnt embedding where there is one."""
        if not self.learnt_texts:
            return self.target_encoder(features)
        end = features.shape[-1] - (1 if self._has_population else 0)
        learnt, given = features[..., : self.width], features[..., self.width : end]
        return learnt if self.target == "none" else self.target_encoder(given) + learnt

    def _population(self, features: Float[Array, "*batch d"], train: bool) -> Float[Array, "*batch o"]:
        """s(y): of the given features, plus the learnt population reward where there is one."""
        if not self.learnt_texts:
            return self.population_reward(features, train)
        start = 0 if self.latent == "none" else self.width
        given, learnt = features[..., start:-1], features[..., -1:]
        return self.population_reward(given, train) + learnt

    def encode(
        self, context: Comparisons, train: bool = False, repeats: Float[Array, "*batch n 2"] | None = None
    ) -> DiagGaussian:
        """q(z | C) for contexts of features (*batch, n, d).

        `repeats` says how often the context shows each (chosen, rejected) response, see `count_repeats`.
        """
        assert self.encoder is not None
        rewards = None
        if self.population != "none":
            rewards = jnp.concatenate(
                [self._population(c, train)[..., :1] for c in (context.chosen, context.rejected)], axis=-1
            )
        if self.encoder.aggregation == "bayes":
            chosen, rejected = self._encode_responses(context.chosen), self._encode_responses(context.rejected)
            context = Comparisons(chosen, rejected, context.mask)
        return self.context_encoder(context, rewards, repeats, train)

    def infer(
        self, context: Comparisons, table: Float[Array, "texts d"] | None = None, train: bool = False
    ) -> DiagGaussian:
        """q(z | C) for contexts of features, or of ids of texts in the table: repeated texts are counted."""
        repeats = count_repeats(context) if table is not None else None
        return self.encode(self.lookup(context, table, train), train, repeats)

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
            out = self._population(features, train)[None]
        else:
            if z is None:
                raise ValueError("a model with a latent needs z")
            out = self.reward_head(self._encode_responses(features), z, train)
            if self.population != "none":
                out = out + self._population(features, train)[None]
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

    def __call__(self, episode: Episode, table: Float[Array, "texts d"] | None = None) -> Array:
        """Log-likelihood of the targets at the mean latent, (1, *batch, t). Touches every parameter."""
        targets = self.lookup(episode.targets, table)
        if self.latent == "none":
            return self.log_likelihood(targets)
        group = self.latent == "group"
        z = self.group_z(episode.group) if group else self.infer(episode.context, table).mean
        return self.log_likelihood(targets, z[None])


def count_repeats(context: Comparisons) -> Float[Array, "*batch n 2"]:
    """How often a context of ids shows each of its responses on the same side, at least 1.

    A person who chose one response over five others has said one thing about it, not five.
    """
    ids = jnp.stack([context.chosen, context.rejected], axis=-1)
    same = (ids[..., :, None, :] == ids[..., None, :, :]) & context.mask[..., None, :, None]
    return jnp.maximum(same.sum(-2), 1).astype(jnp.float32)
