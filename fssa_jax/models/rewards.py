"""Reward models: BTL, DPL and NP-BTL in one module (arXiv 2412.13998, section 3)."""

import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fssa_jax.models.bayes_encoder import BayesEncoder
from fssa_jax.models.calibration import Calibration, calibrated
from fssa_jax.models.context import count_repeats
from fssa_jax.models.layers import MLP
from fssa_jax.models.reward_heads import BilinearHead, ConcatHead, Norm, PopulationReward
from fssa_jax.models.set_encoder import SetEncoder
from fssa_jax.ops.choices import offered, per_choice, real_responses, responses_of
from fssa_jax.ops.distributions import gaussian_sample
from fssa_jax.ops.likelihoods import (
    Link,
    btl_log_likelihood,
    choice_log_likelihood,
    dpl_log_likelihood,
    lapse_log_likelihood,
)
from fssa_jax.types import Comparisons, DiagGaussian, Episode, Posterior

Latent = Literal["none", "context", "group"]


class Encoded(NamedTuple):
    """The encoding of responses, which does not depend on the person; None for parts that the model lacks.

    f(y) (*batch, m), s(y) (*batch, outputs), and o(y) (*batch, 1), the population's log-odds of liking y, which are the
    offsets of a `BayesEncoder` that reads responses.
    """

    response: Array | None
    population: Array | None
    offset: Array | None


class RewardModel(nn.Module):
    """Rewards of responses for a person, r(x, y, z), and the likelihood of choices under them.

    * latent "none" is BTL (or DPL with likelihood "dpl"): one reward s(y) for everybody.
    * latent "context" is NP-BTL: the `encoder` infers z from the person's choices.
    * latent "group" is a specialist per group: the group is given, and each has one learnt latent.

    Attributes:
      likelihood, link: BTL or DPL, and the link function of DPL.
      encoder: of contexts; for "group" it only sets the size of the latents.
      groups: number of groups, for "group" only.
      target: encoder of a response's features, "linear" or "mlp"; "none" only with learnt texts.
      width: of the encoded response and of hidden layers.
      head: how the encoded response and z are combined into a reward.
      norm, axis_name: of the heads; see `ConcatHead`.
      population: "none", or the network of a term s(y) that is added to the reward of a model with a latent.
      learnt_texts: number of texts with a learnt embedding, which is added to the encoded response, and a learnt
        population reward (for new users on known texts); 0 for none. Responses are then given as ids of texts.
      text_dropout: share of the texts whose learnt embedding is dropped in a training step.
      keep_population: s(y) of a model with a latent is not trained, but for its scale.
      feature_scale: factor of the features.
      thresholds: the number of thresholds of thumbs and ratings, whose indicators are the last features.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax import Comparisons, Episode, RewardModel, SetEncoder
    >>> choices = Comparisons(jnp.ones((2, 3, 5)), jnp.zeros((2, 3, 5)), jnp.ones((2, 3), bool))
    >>> model = RewardModel(encoder=SetEncoder(width=16, latent_dim=4, heads=2), width=16)
    >>> episode = Episode(choices, choices, jnp.zeros(2, int), jnp.zeros(2, int))
    >>> variables = model.init(jax.random.key(0), episode)
    >>> z = model.apply(variables, choices, method="infer").mean
    >>> model.apply(variables, jnp.ones((2, 7, 5)), z[None], method="rewards").shape  # 7 responses for each person
    (1, 2, 7, 1)
    """

    likelihood: Literal["btl", "dpl"] = "btl"
    link: Link = "probit"
    latent: Latent = "context"
    encoder: SetEncoder | BayesEncoder | None = None
    groups: int = 0
    target: Literal["none", "linear", "mlp"] = "mlp"
    width: int = 128
    head: Literal["concat", "bilinear"] = "concat"
    norm: Norm = "none"
    population: Literal["none", "linear", "mlp"] = "none"
    learnt_texts: int = 0
    text_dropout: float = 0.0
    keep_population: bool = False
    feature_scale: float = 1.0
    thresholds: int = 0
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
        if self.keep_population:
            self.population_log_scale = self.param("population_log_scale", nn.initializers.zeros, ())
        if self.learnt_texts:
            init = nn.initializers.normal(0.1)
            self.text_embedding = nn.Embed(self.learnt_texts, self.width, embedding_init=init)
            if self._reads_responses:
                self.text_offset = nn.Embed(self.learnt_texts, 1, embedding_init=nn.initializers.zeros)
        if self.target != "none":
            widths = (self.width,) if self.target == "linear" else (self.width, self.width)
            self.target_encoder = MLP(widths)
        if self.head == "bilinear":
            self.reward_head = BilinearHead(outputs, bias=not self.keep_population)
        else:
            self.reward_head = ConcatHead(self.width, outputs, self.norm, self.axis_name)
        if self.latent == "context":
            if self.encoder is None:
                raise ValueError("latent 'context' needs an encoder")
            self.context_encoder = self.encoder
        else:
            self.group_latent = nn.Embed(self.groups, self.latent_dim)

    @property
    def sampled(self) -> bool:
        """Whether z is sampled from q(z | C)."""
        return self.latent == "context" and self.encoder is not None and self.encoder.gaussian

    @property
    def latent_dim(self) -> int:
        """m, the size of z: that of the set encoder, or else the width of an encoded response."""
        return self.encoder.latent_dim if isinstance(self.encoder, SetEncoder) else self.width

    @property
    def noise_width(self) -> int:
        """Width of the noise of `posterior`; a `BayesEncoder` has one more coordinate, how easily a person likes."""
        return self.latent_dim + isinstance(self.encoder, BayesEncoder)

    @property
    def _has_population(self) -> bool:
        return self.latent == "none" or self.population != "none"

    @property
    def _reads_responses(self) -> bool:
        """Whether the encoder reads each response as a separate observation."""
        encoder = self.encoder
        return self.latent == "context" and isinstance(encoder, BayesEncoder) and "responses" in encoder.observations

    def lapse(self) -> Float[Array, ""] | None:
        """The learnt share of choices at random; None where the encoder has no lapses."""
        encoder = self.context_encoder if self.latent == "context" else None
        return encoder.lapse() if isinstance(encoder, BayesEncoder) else None

    def text_mask(self) -> Float[Array, " texts"] | None:
        """Dropout mask over learnt embeddings, scaled to preserve their mean; None without dropout."""
        if not self.text_dropout or self.latent == "none":
            return None
        keep = 1 - self.text_dropout
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (self.learnt_texts,))
        return jnp.where(kept, 1 / keep, 0.0)

    def encode_responses(
        self,
        responses: Array,
        table: Float[Array, "texts d"] | None = None,
        train: bool = False,
        text_mask: Float[Array, " texts"] | None = None,
    ) -> Encoded:
        """Encodes responses independently of the person.

        Args:
          responses: features (*batch, d); with a table, ids of its rows (*batch).
          table: features of all texts. If it is smaller than the batch, the whole table is encoded and the results are
            looked up, which gives the same values faster.
        """
        if table is None:
            return self._encode(responses, None, train, None)
        # Batch statistics of the population's head must be those of the batch, not of the table.
        of_batch = self.norm == "batch" and self._has_population and self.population != "linear"
        if table.shape[0] > responses.size or of_batch:
            return self._encode(table[responses], responses, train, text_mask)
        everything = self._encode(table, jnp.arange(table.shape[0]), train, text_mask)
        return jax.tree.map(lambda x: x[responses], everything)

    def _encode(self, features: Array, ids: Array | None, train: bool, text_mask: Array | None) -> Encoded:
        features = features * self.feature_scale
        population = self.population_reward(features, train) if self._has_population else None
        response = offset = None
        if self.latent != "none":
            response = jnp.zeros(()) if self.target == "none" else self.target_encoder(features)
        if self.learnt_texts and ids is not None:
            # Texts added after training have features only; their learnt part is 0.
            known = (ids < self.learnt_texts)[..., None]
            ids = jnp.minimum(ids, self.learnt_texts - 1)
            if population is not None:
                population = population + jnp.where(known, self.text_bias(ids), 0)
            if response is not None:
                learnt = jnp.where(known, self.text_embedding(ids), 0)
                response = response + (learnt if text_mask is None else learnt * text_mask[ids][..., None])
            if self._reads_responses:
                offset = jnp.where(known, self.text_offset(ids), 0)
        if self.keep_population and self.latent != "none" and population is not None:
            population = jnp.exp(self.population_log_scale) * jax.lax.stop_gradient(population)
        if self._reads_responses and population is not None:
            offset = population[..., :1] + (0 if offset is None else offset)
        return Encoded(response, population, offset)

    def infer(
        self,
        context: Comparisons,
        table: Float[Array, "texts d"] | None = None,
        train: bool = False,
        text_mask: Float[Array, " texts"] | None = None,
    ) -> DiagGaussian:
        """q(z | C) of contexts: features (*batch, n, d), or, with a table, ids of its rows (*batch, n).

        Only with ids can repeated responses of a context be counted once.
        """
        return calibrated(self._read(context, table, train, text_mask, None), self._calibration, context.mask)

    def posterior(
        self,
        context: Comparisons,
        table: Float[Array, "texts d"] | None,
        noise: Float[Array, "*batch s w"],
        train: bool = False,
        text_mask: Float[Array, " texts"] | None = None,
    ) -> Posterior:
        """q(z | C) as weighted points, one for each row of the noise, which is `noise_width` wide.

        The only point of a deterministic latent is its mean; those of a discrete prior are its kinds.
        """
        q = self._read(context, table, train, text_mask, noise if self.sampled else None)
        if not isinstance(q, Posterior):
            points = q.mean[..., None, :]
            if self.sampled:
                points = jnp.moveaxis(gaussian_sample(q, jnp.moveaxis(noise, -2, 0)), 0, -2)
            samples = points.shape[-2]
            log_weights = jnp.full((*q.mean.shape[:-1], samples), -math.log(samples))
            lapse = self.lapse()
            lapse = None if lapse is None else jnp.broadcast_to(lapse, q.mean.shape[:-1])
            q = Posterior(q.mean, q.scale, points, log_weights, jnp.ones(q.mean.shape[:-1]), lapse)
        out: Any = calibrated(q, self._calibration, context.mask)
        return out

    @property
    def _calibration(self) -> Calibration | None:
        if not self.has_variable("calibration", "shrinkage"):
            return None
        return Calibration(*(self.get_variable("calibration", name) for name in Calibration._fields))

    def _read(
        self,
        context: Comparisons,
        table: Float[Array, "texts d"] | None,
        train: bool,
        text_mask: Float[Array, " texts"] | None,
        noise: Float[Array, "*batch s w"] | None,
    ) -> DiagGaussian:
        if self.latent != "context":
            raise ValueError(f"infer wants a model with latent 'context', got {self.latent!r}")
        encoder = self.context_encoder
        sides: list[Any] = [context.chosen, context.rejected]
        if context.others is not None:
            sides += list(jnp.moveaxis(context.others, context.mask.ndim, 0))
        rewards = offsets = None
        encoded_input = isinstance(encoder, BayesEncoder) or self.learnt_texts > 0
        if encoded_input or self.population != "none":
            encoded: list[Any] = [self.encode_responses(side, table, train, text_mask) for side in sides]
            if encoded[0].population is not None:
                rewards = jnp.concatenate([one.population[..., :1] for one in encoded], axis=-1)
            if encoded[0].offset is not None:
                offsets = jnp.concatenate([one.offset for one in encoded], axis=-1)
            if encoded_input:
                sides = [one.response for one in encoded]
        if not encoded_input and table is not None:
            sides = [table[side] * self.feature_scale for side in sides]
        others = jnp.stack(sides[2:], axis=context.mask.ndim) if context.others is not None else None
        choices = Comparisons(sides[0], sides[1], context.mask, others, context.listed, context.weight)
        if isinstance(encoder, SetEncoder):
            return encoder(choices, rewards, train)
        counted = table is not None and context.others is None
        repeats = count_repeats(context) if counted else None
        if self.thresholds and self._reads_responses and context.others is None:
            repeats = self._only_of_texts(context, table, repeats)
        return encoder(choices, rewards, offsets, repeats, noise)

    def _only_of_texts(self, context: Comparisons, table: Array | None, repeats: Array | None) -> Array:
        """Repeats (*batch, n, 2), infinite for thresholds: a threshold is no response that is liked or disliked."""
        pair = [side if table is None else table[side] for side in (context.chosen, context.rejected)]
        threshold = (jnp.stack(pair, axis=-2)[..., -self.thresholds :] != 0).any(-1)
        return jnp.where(threshold, jnp.inf, 1.0 if repeats is None else repeats)

    def group_z(self, group: Array) -> Float[Array, "*batch m"]:
        """The learnt latent of a group (latent "group" only)."""
        return self.group_latent(group)

    def rewards(
        self,
        responses: Array,
        z: Float[Array, "*samples m"] | None = None,
        table: Float[Array, "texts d"] | None = None,
        train: bool = False,
        text_mask: Float[Array, " texts"] | None = None,
    ) -> Float[Array, "*out"]:
        """Rewards of responses.

        Args:
          responses: features (*batch, t, d); with a table, ids of its rows (*batch, t).
          z: latents (samples, *batch, m); None for latent "none".

        Returns:
          (samples, *batch, t, 1), with samples = 1 without z; with likelihood "dpl" the last axis holds the mean and
          the standard deviation.

        Raises:
          ValueError: z is missing, or has the wrong shape.
        """
        encoded = self.encode_responses(responses, table, train, text_mask)
        out = jnp.zeros(())
        if encoded.response is not None:
            batch = responses.shape[: responses.ndim - (2 if table is None else 1)]
            if z is None or z.ndim != len(batch) + 2 or z.shape[-1] != self.latent_dim:
                got = None if z is None else z.shape
                raise ValueError(
                    f"z must be {('samples', *batch, self.latent_dim)} for responses {responses.shape}, got {got}"
                )
            out = self.reward_head(encoded.response, z, train)
        if encoded.population is not None:
            out = out + encoded.population[None]
        if self.likelihood == "dpl":
            mean, raw = jnp.split(out, 2, axis=-1)
            return jnp.concatenate([mean, jax.nn.softplus(raw)], axis=-1)
        return out

    def log_likelihood(
        self,
        targets: Comparisons,
        z: Float[Array, "*samples m"] | None = None,
        table: Float[Array, "texts d"] | None = None,
        train: bool = False,
        text_mask: Float[Array, " texts"] | None = None,
    ) -> Float[Array, "*out"]:
        """log p(choice | z) of every target, (samples, *batch, t); targets as features, or ids with a table.

        Raises:
          ValueError: choices of one among more than two, for likelihood "dpl".
        """
        n = targets.mask.shape[-1]
        lapse = self.lapse()
        if targets.others is not None:
            rewards = self.target_rewards(targets, z, table, train, text_mask)
            log_p = choice_log_likelihood(rewards[..., :1] - rewards[..., 1:], _like(offered(targets), rewards))
            number = jnp.broadcast_to(real_responses(targets).sum(-1), log_p.shape)
            return log_p if lapse is None else lapse_log_likelihood(log_p, lapse, number)
        # One pass over both responses: batch statistics (norm "batch") cover all of them.
        rewards = self.rewards(responses_of(targets), z, table, train, text_mask)
        chosen, rejected = rewards[..., :n, :], rewards[..., n:, :]
        if self.likelihood == "btl":
            log_p = btl_log_likelihood(chosen[..., 0], rejected[..., 0])
            return log_p if lapse is None else lapse_log_likelihood(log_p, lapse)
        return dpl_log_likelihood(chosen[..., 0], chosen[..., 1], rejected[..., 0], rejected[..., 1], self.link)

    def target_rewards(
        self,
        targets: Comparisons,
        z: Float[Array, "*samples m"] | None = None,
        table: Float[Array, "texts d"] | None = None,
        train: bool = False,
        text_mask: Float[Array, " texts"] | None = None,
    ) -> Float[Array, "*out"]:
        """Rewards of the responses of every target, (samples, *batch, t, 2 + a), the chosen one first, in nats.

        Raises:
          ValueError: for likelihood "dpl", whose rewards are distributions.
        """
        if self.likelihood == "dpl":
            raise ValueError("likelihood 'dpl' is of choices between two responses")
        rewards = self.rewards(responses_of(targets), z, table, train, text_mask)
        return per_choice(rewards[..., 0], targets)

    def __call__(self, episode: Episode, table: Float[Array, "texts d"] | None = None) -> Array:
        """Log-likelihood of the targets at the mean latent, (1, *batch, t). Touches every parameter."""
        if self.latent == "none":
            return self.log_likelihood(episode.targets, None, table)
        group = self.latent == "group"
        z = self.group_z(episode.group) if group else self.infer(episode.context, table).mean
        return self.log_likelihood(episode.targets, z[None], table)


def _like(listed: Array | None, rewards: Array) -> Array | None:
    """The mask of the offered responses, for every sample of z."""
    return None if listed is None else jnp.broadcast_to(listed[None], (rewards.shape[0], *listed.shape))
