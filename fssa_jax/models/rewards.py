"""Reward models: BTL, DPL and NP-BTL from one module (arXiv 2412.13998, section 3)."""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fssa_jax.models.encoder import NPEncoder
from fssa_jax.models.layers import MLP, BatchNorm
from fssa_jax.ops.likelihoods import Link, btl_log_likelihood, dpl_log_likelihood
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

        def identity(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
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


class Encoded(NamedTuple):
    """What the model makes of responses before it knows the person; None for a part that it does not have.

    f(y) (*batch, m), s(y) (*batch, outputs), and o(y) (*batch, 1), the log-odds that anybody likes y, from
    which the "bayes" encoder starts.
    """

    response: Array | None
    population: Array | None
    offset: Array | None


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

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax import Comparisons, Episode, NPEncoder, RewardModel
    >>> choices = Comparisons(jnp.ones((2, 3, 5)), jnp.zeros((2, 3, 5)), jnp.ones((2, 3), bool))
    >>> model = RewardModel(encoder=NPEncoder(width=16, latent_dim=4, heads=2), width=16)
    >>> episode = Episode(choices, choices, jnp.zeros(2, int), jnp.zeros(2, int))
    >>> variables = model.init(jax.random.key(0), episode)
    >>> z = model.apply(variables, choices, method="infer").mean
    >>> model.apply(variables, jnp.ones((2, 7, 5)), z[None], method="rewards").shape  # 7 responses for each person
    (1, 2, 7, 1)
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
            if self._reads_responses:
                self.text_offset = nn.Embed(self.learnt_texts, 1, embedding_init=nn.initializers.zeros)
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

    @property
    def _has_population(self) -> bool:
        return self.latent == "none" or self.population != "none"

    @property
    def _reads_responses(self) -> bool:
        """Whether the encoder takes each response by itself as an observation."""
        encoder = self.encoder
        return (
            self.latent == "context"
            and encoder is not None
            and encoder.aggregation == "bayes"
            and "responses" in encoder.observations
        )

    def text_mask(self) -> Float[Array, " texts"] | None:
        """Which learnt embeddings a training step keeps, scaled to keep their mean; None without dropout."""
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
        """f(y) and s(y) of responses.

        Args:
          responses: features (*batch, d); with a table, ids of its rows (*batch).
          table: features of all texts. Where it is smaller than the batch it is encoded whole and the
            results are looked up, which is the same and cheaper.
        """
        if table is None:
            return self._encode(responses, None, train, None)
        # The batch statistics of the population's head are those of the batch, not of the table.
        of_batch = self.norm == "batch" and self._has_population and self.population != "linear"
        if table.shape[0] > responses.size or of_batch:
            return self._encode(table[responses], responses, train, text_mask)
        everything = self._encode(table, jnp.arange(table.shape[0]), train, text_mask)
        return jax.tree.map(lambda x: x[responses], everything)

    def _encode(self, features: Array, ids: Array | None, train: bool, text_mask: Array | None) -> Encoded:
        population = self.population_reward(features, train) if self._has_population else None
        response = offset = None
        if self.latent != "none":
            response = jnp.zeros(()) if self.target == "none" else self.target_encoder(features)
        if self.learnt_texts and ids is not None:
            # Texts that came after training have features only; their learnt part is 0.
            known = (ids < self.learnt_texts)[..., None]
            ids = jnp.minimum(ids, self.learnt_texts - 1)
            if population is not None:
                population = population + jnp.where(known, self.text_bias(ids), 0)
            if response is not None:
                learnt = jnp.where(known, self.text_embedding(ids), 0)
                response = response + (learnt if text_mask is None else learnt * text_mask[ids][..., None])
            if self._reads_responses:
                offset = jnp.where(known, self.text_offset(ids), 0)
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

        Only with ids can a response that the context shows several times be counted once.
        """
        assert self.encoder is not None
        repeats = rewards = offsets = None
        if table is not None and self.encoder.aggregation == "bayes":
            repeats = count_repeats(context)
        chosen, rejected = context.chosen, context.rejected
        encoded_input = self.encoder.aggregation == "bayes" or (self.learnt_texts > 0 and table is not None)
        if encoded_input or self.population != "none":
            a, b = (self.encode_responses(side, table, train, text_mask) for side in (chosen, rejected))
            if a.population is not None and b.population is not None:
                rewards = jnp.concatenate([a.population[..., :1], b.population[..., :1]], axis=-1)
            if a.offset is not None and b.offset is not None:
                offsets = jnp.concatenate([a.offset, b.offset], axis=-1)
            if encoded_input:
                chosen, rejected = a.response, b.response
        if not encoded_input and table is not None:
            chosen, rejected = table[chosen], table[rejected]
        return self.context_encoder(Comparisons(chosen, rejected, context.mask), rewards, offsets, repeats, train)

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
          (samples, *batch, t, 1), samples 1 without z; with likelihood "dpl" the last axis holds the
          mean and the standard deviation.
        """
        encoded = self.encode_responses(responses, table, train, text_mask)
        out = jnp.zeros(())
        if self.latent != "none":
            if z is None:
                raise ValueError("a model with a latent needs z")
            assert encoded.response is not None
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
        """log p(choice | z) of every target, (samples, *batch, t); targets as features, or ids with a table."""
        n = targets.mask.shape[-1]
        # One pass over both responses: batch statistics (norm "batch") are those of all options.
        both = jnp.concatenate([targets.chosen, targets.rejected], axis=targets.mask.ndim - 1)
        rewards = self.rewards(both, z, table, train, text_mask)
        chosen, rejected = rewards[..., :n, :], rewards[..., n:, :]
        if self.likelihood == "btl":
            return btl_log_likelihood(chosen[..., 0], rejected[..., 0])
        return dpl_log_likelihood(chosen[..., 0], chosen[..., 1], rejected[..., 0], rejected[..., 1], self.link)

    def __call__(self, episode: Episode, table: Float[Array, "texts d"] | None = None) -> Array:
        """Log-likelihood of the targets at the mean latent, (1, *batch, t). Touches every parameter."""
        if self.latent == "none":
            return self.log_likelihood(episode.targets, None, table)
        group = self.latent == "group"
        z = self.group_z(episode.group) if group else self.infer(episode.context, table).mean
        return self.log_likelihood(episode.targets, z[None], table)


def count_repeats(context: Comparisons) -> Float[Array, "*batch n 2"]:
    """How often a context of ids shows each of its responses on the same side, at least 1.

    A person who chose one response over five others has said one thing about it, not five.
    """
    ids = jnp.stack([context.chosen, context.rejected], axis=-1)
    same = (ids[..., :, None, :] == ids[..., None, :, :]) & context.mask[..., None, :, None]
    return jnp.maximum(same.sum(-2), 1).astype(jnp.float32)
